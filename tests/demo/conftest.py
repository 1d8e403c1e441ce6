"""The fixtures of the tests in a browser."""

from tests.demo.page_in_browser import browser, url


__all__ = ["browser", "url"]
