"""All results in one HTML file that needs no network."""

from pareco.reporting.page.document import Section, page_html

__all__ = ["Section", "page_html"]
