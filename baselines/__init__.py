"""The methods that PareCO is compared with; a file here is a method that can be named."""
