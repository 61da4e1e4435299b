"""Looking at a page in a real browser (the `browser` of conftest.py)."""

import json


def opened(browser, path, **context):
    page = browser.new_context(**context).new_page()
    troubles = []
    page.on("console", lambda message: troubles.append(message.text))
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("request", lambda request: request.url.startswith(("file:", "data:")) or troubles.append(request.url))
    page.goto(path.as_uri())
    return page, troubles


def walks(page) -> bool:
    """Whether the first silhouettes of a page move; waits for them."""
    page.locator(".walker").first.scroll_into_view_if_needed()
    position = "getComputedStyle(document.querySelector('.walker')).maskPosition"
    before = page.evaluate(position)
    page.wait_for_function(f"{position} !== {json.dumps(before)}", timeout=5000)
    return True
