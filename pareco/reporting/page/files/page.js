"use strict";

/* One explorer per experiment: Chart.js draws, this chooses what is drawn and shows one network.
   Statistics are made in Python; nothing is computed here but positions and texts. */
(() => {
  const REACH = 26; // pixels from the pointer to a network
  const MANY = 1200; // networks, from which on the markers are smaller
  const BAND_ALPHA = "1a";
  const POINT_ALPHA = "d0";

  const theme = () => {
    const style = getComputedStyle(document.documentElement);
    const value = (name) => style.getPropertyValue(name).trim();
    return { text: value("--text"), muted: value("--muted"), grid: value("--grid"), ground: value("--ground") };
  };

  const element = (name, text, attributes = {}) => {
    const made = document.createElement(name);
    if (text !== undefined) made.textContent = text;
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    return made;
  };

  const amount = (value, cost) => {
    if (cost.unit) return `${Number(value.toPrecision(3))} ${cost.unit}`;
    const [size, unit] = [[1e9, " G"], [1e6, " M"], [1e3, " k"]].find(([each]) => value >= 0.9995 * each) ?? [1, ""];
    return `${Number((value / size).toPrecision(3))}${unit}`;
  };

  const percent = (value, cost) => `${((100 * value) / cost.full).toFixed(1)}%`;

  class Explorer {
    constructor(root) {
      this.data = JSON.parse(root.querySelector("script[type='application/json']").textContent);
      this.networks = this.data.networks;
      this.count = this.networks.seed.length;
      this.cost = this.data.objective;
      this.visible = this.data.methods.map(() => true);
      this.chosen = null;
      this.canvas = root.querySelector("canvas");
      this.facts = root.querySelector(".facts");
      this.bars = root.querySelector(".bars");
      this.detail = root.querySelector(".detail");
      const inputs = [...root.querySelectorAll("input")];
      for (const input of inputs) {
        input.addEventListener("change", () => this.read(inputs));
      }
      this.chart = new Chart(this.canvas, {
        type: "scatter",
        data: { datasets: this.datasets() },
        options: this.options(),
        plugins: [{ id: "chosen", afterDatasetsDraw: () => this.drawRing() }],
      });
      this.read(inputs);
      this.listen();
      this.show();
    }

    /* Per method: the ends of the interval over seeds (a band), the line, the networks. */
    datasets() {
      const radius = this.count > MANY ? 2.4 : 3.8;
      return this.data.methods.flatMap((method, index) => {
        const line = { type: "line", pointRadius: 0, borderWidth: 0, parsing: false };
        const band = { ...line, order: 1000 + index, backgroundColor: method.color + BAND_ALPHA };
        const shape = {
          pointStyle: method.point,
          rotation: method.rotation,
          radius: method.stroked ? radius + 0.6 : radius,
          borderWidth: method.stroked ? 1.8 : 0,
          borderColor: method.color + (method.stroked ? POINT_ALPHA : ""),
          backgroundColor: method.color + POINT_ALPHA,
        };
        return [
          { ...band, data: [], fill: false },
          { ...band, data: [], fill: method.seeds > 2 ? "-1" : false },
          { ...line, data: [], order: 2 * index, borderColor: method.color, borderWidth: method.width + 0.3, borderDash: method.dash },
          { type: "scatter", data: [], order: 2 * index + 1, parsing: false, ...shape },
        ];
      });
    }

    options() {
      const font = { family: getComputedStyle(document.body).fontFamily, size: 12 };
      const axis = (title) => ({ type: "linear", title: { display: true, text: title, font: { ...font, size: 13 } }, ticks: { font }, grid: {}, border: {} });
      return {
        animation: false,
        events: [],
        onResize: (_, size) => this.chart && this.entitle(size.width),
        maintainAspectRatio: false,
        normalized: true,
        layout: { padding: { top: 6, right: 10 } },
        plugins: { legend: { display: false }, tooltip: { enabled: false }, filler: { drawTime: "beforeDatasetsDraw" } },
        scales: { x: axis(""), y: { ...axis("Test top-1 error (%)"), grace: "4%" } },
      };
    }

    read(inputs) {
      for (const input of inputs) {
        if (input.type === "checkbox") this.visible[Number(input.dataset.method)] = input.checked;
        else if (input.checked) this.cost = input.value;
      }
      if (this.chosen !== null && !this.visible[this.networks.method[this.chosen]]) this.choose(null);
      else if (this.chosen !== null) this.show();
      this.draw();
    }

    draw() {
      const { methods, costs, lines } = this.data;
      const networks = this.networks;
      const values = networks.costs[this.cost];
      const points = methods.map(() => []);
      for (let index = 0; index < this.count; index += 1) {
        points[networks.method[index]].push({ x: values[index], y: networks.top1[index] });
      }
      methods.forEach((_, index) => {
        const line = (column) => lines[this.cost][index].map((step) => ({ x: step[0], y: step[column] }));
        const datasets = this.chart.data.datasets.slice(4 * index, 4 * index + 4);
        [line(2), line(3), line(1), points[index]].forEach((data, position) => {
          datasets[position].data = data;
          this.chart.setDatasetVisibility(4 * index + position, this.visible[index]);
        });
      });
      this.order = [...values.keys()].sort((one, other) => values[one] - values[other] || one - other);
      this.scale(costs[this.cost], values[this.order[0]], values[this.order.at(-1)]);
      this.colour();
      this.chart.update("none");
    }

    scale(cost, least, most) {
      const axis = this.chart.options.scales.x;
      const tenths = Math.max(0, Math.floor((10 * least) / cost.full - 0.2));
      axis.min = (tenths / 10) * cost.full;
      axis.max = 1.02 * Math.max(cost.full, most); // a measured latency may exceed the full network's
      axis.afterBuildTicks = (scale) => {
        const last = Math.floor((10 * axis.max) / cost.full);
        const room = Math.min(6, scale.chart.width / 62); // labels that fit side by side
        const marks = (step) => [...Array(last + 1).keys()].filter((tenth) => tenth >= tenths && tenth % step === 0);
        const step = [1, 2, 5].find((each) => marks(each).length <= room) ?? 10;
        scale.ticks = marks(step).map((tenth) => ({ value: (tenth / 10) * cost.full }));
      };
      axis.ticks.callback = (value) => [`${Math.round((100 * value) / cost.full)}%`, value ? amount(value, cost) : ""];
      axis.ticks.maxRotation = 0;
      axis.ticks.autoSkip = false;
      this.entitle(this.chart.width);
    }

    /* In two lines where there is no room for one. */
    entitle(width) {
      const cost = this.data.costs[this.cost];
      const lines = [cost.axis, `(% of the full network’s ${cost.full_text})`];
      this.chart.options.scales.x.title.text = width < 520 ? lines : lines.join(" ");
    }

    colour() {
      const { text, muted, grid } = theme();
      for (const axis of Object.values(this.chart.options.scales)) {
        axis.ticks.color = muted;
        axis.title.color = text;
        axis.grid.color = grid;
        axis.border.color = muted;
      }
    }

    listen() {
      const canvas = this.canvas;
      canvas.addEventListener("pointermove", (event) => {
        const found = event.pointerType === "mouse" ? this.nearest(event) : null;
        if (found !== null) this.choose(found);
      });
      canvas.addEventListener("click", (event) => this.choose(this.nearest(event)));
      canvas.addEventListener("keydown", (event) => this.press(event));
      const redraw = () => { this.colour(); this.chart.update("none"); };
      matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
      matchMedia("print").addEventListener("change", () => { this.chart.resize(); redraw(); });
    }

    nearest(event) {
      const box = this.canvas.getBoundingClientRect();
      const { x, y } = this.chart.scales;
      const values = this.networks.costs[this.cost];
      let found = null;
      let least = REACH ** 2;
      for (let index = 0; index < this.count; index += 1) {
        if (!this.visible[this.networks.method[index]]) continue;
        const right = x.getPixelForValue(values[index]) - (event.clientX - box.left);
        const down = y.getPixelForValue(this.networks.top1[index]) - (event.clientY - box.top);
        if (right ** 2 + down ** 2 < least) [found, least] = [index, right ** 2 + down ** 2];
      }
      return found;
    }

    press(event) {
      if (event.altKey || event.ctrlKey || event.metaKey) return;
      const moves = {
        ArrowRight: () => this.along(1),
        ArrowLeft: () => this.along(-1),
        ArrowDown: () => this.across(1),
        ArrowUp: () => this.across(-1),
        Home: () => this.shown()[0],
        End: () => this.shown().at(-1),
        Escape: () => null,
      };
      if (!Object.hasOwn(moves, event.key)) return;
      event.preventDefault();
      this.choose(moves[event.key]() ?? null);
    }

    /* The networks of visible methods, by ascending cost. */
    shown() {
      return this.order.filter((index) => this.visible[this.networks.method[index]]);
    }

    along(step) {
      const shown = this.shown();
      if (this.chosen === null) return step > 0 ? shown[0] : shown.at(-1);
      return shown[Math.min(Math.max(shown.indexOf(this.chosen) + step, 0), shown.length - 1)];
    }

    /* The network of the next visible method whose cost is nearest to the chosen one's. */
    across(step) {
      if (this.chosen === null) return this.along(step);
      const values = this.networks.costs[this.cost];
      const methods = this.visible.flatMap((visible, index) => (visible ? [index] : []));
      const position = methods.indexOf(this.networks.method[this.chosen]) + step;
      const method = methods[(position + methods.length) % methods.length];
      if (method === this.networks.method[this.chosen]) return this.chosen;
      const distance = (index) => Math.abs(values[index] - values[this.chosen]);
      return this.order
        .filter((index) => this.networks.method[index] === method)
        .reduce((best, index) => (distance(index) < distance(best) ? index : best));
    }

    choose(index) {
      if (index === this.chosen) return;
      this.chosen = index;
      this.show();
      this.chart.draw();
    }

    drawRing() {
      if (this.chosen === null) return;
      const { ctx, scales } = this.chart;
      const { text, ground } = theme();
      const x = scales.x.getPixelForValue(this.networks.costs[this.cost][this.chosen]);
      const y = scales.y.getPixelForValue(this.networks.top1[this.chosen]);
      ctx.save();
      for (const [colour, width] of [[ground, 5], [text, 2.2]]) {
        ctx.strokeStyle = colour;
        ctx.lineWidth = width;
        ctx.beginPath();
        ctx.arc(x, y, 8, 0, 2 * Math.PI);
        ctx.stroke();
      }
      ctx.restore();
    }

    show() {
      const index = this.chosen;
      if (index === null) {
        this.facts.replaceChildren(element("p", "No network is chosen: point at one, tap it, or move to it by the arrow keys."));
        this.showBars(null, "");
        return;
      }
      const { networks, data } = this;
      const list = element("dl");
      const fact = (name, value, own) => {
        const kind = own ? { class: "own" } : {};
        list.append(element("dt", name, kind), element("dd", value, kind));
      };
      fact("method", data.methods[networks.method[index]].label);
      fact("seed", networks.seed[index]);
      fact("top-1 error", `${networks.top1[index].toFixed(2)}%`, true);
      fact("top-5 error", `${networks.top5[index].toFixed(2)}%`);
      fact("search loss", networks.loss[index].toFixed(4));
      for (const [name, cost] of Object.entries(data.costs)) {
        const value = networks.costs[name][index];
        fact(cost.name, `${amount(value, cost)} (${percent(value, cost)})`, name === this.cost);
      }
      fact("widths", networks.widths[index]);
      this.facts.replaceChildren(list);
      this.showBars(networks.widths[index].split(" ").map(Number), data.methods[networks.method[index]].color);
    }

    /* A bar for each channel group; empty ones where no network is chosen. */
    showBars(widths, color) {
      this.bars.replaceChildren(...this.data.groups.map(([name, maximum], position) => {
        const item = element("li");
        const track = element("span", undefined, { class: "track" });
        const fill = element("i");
        fill.style.width = widths ? `${(100 * widths[position]) / maximum}%` : "0";
        fill.style.backgroundColor = color;
        track.append(fill);
        const count = `${widths ? widths[position] : "–"} of ${maximum}`;
        item.append(element("span", name, { class: "name" }), track, element("span", count, { class: "count" }));
        return item;
      }));
    }

    table() {
      const { networks, data } = this;
      const costs = Object.entries(data.costs);
      const row = (kind, texts) => {
        const made = element("tr");
        made.append(...texts.map((text, position) => element(position ? kind : "th", text, kind === "th" || !position ? { scope: kind === "th" ? "col" : "row" } : {})));
        return made;
      };
      const [table, head, body] = ["table", "thead", "tbody"].map((name) => element(name));
      head.append(row("th", ["method", "seed", "top-1 error (%)", "top-5 error (%)", "search loss", ...costs.map(([, cost]) => (cost.unit ? `${cost.name} (${cost.unit})` : cost.name)), "widths"]));
      for (let index = 0; index < this.count; index += 1) {
        body.append(row("td", [
          data.methods[networks.method[index]].label,
          networks.seed[index],
          networks.top1[index].toFixed(2),
          networks.top5[index].toFixed(2),
          networks.loss[index].toFixed(4),
          ...costs.map(([name, cost]) => (cost.unit ? networks.costs[name][index].toFixed(3) : networks.costs[name][index].toLocaleString("en"))),
          networks.widths[index],
        ]));
      }
      table.append(head, body);
      return table;
    }
  }

  for (const root of document.querySelectorAll("[data-explorer]")) {
    const explorer = new Explorer(root);
    const all = root.parentElement.querySelector("details.networks");
    all.addEventListener("toggle", () => all.querySelector(".scroll").replaceChildren(explorer.table()), { once: true });
  }
})();
