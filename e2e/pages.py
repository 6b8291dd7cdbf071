"""Open WebUI's page: what is where on it, as version 0.12.4 draws it."""

import re
from pathlib import Path

import msgspec
from playwright.sync_api import FilePayload, Locator, Page, expect


class Card(msgspec.Struct, frozen=True):
    """A tool call as the page shows it, opened."""

    name: str
    input: str
    output: str
    failed: bool


class Chat:
    """A chat on a page: a new one until something is sent."""

    def __init__(self, page: Page, address: str, screenshots: Path) -> None:
        self.page = page
        self._address = address
        self._screenshots = screenshots
        self._taken = 0

    def open(self, *, temporary: bool = False) -> None:
        """Opens a new chat; Open WebUI does not keep a temporary one."""
        self.page.goto(f"{self._address}/{'?temporary-chat=true' if temporary else ''}")
        self.page.locator("#chat-input").wait_for()

    def reload(self) -> None:
        """Loads the page again, and waits until its answers are there."""
        self.page.reload()
        self.answers.first.wait_for()

    def choose(self, agent: str, *others: str) -> None:
        """Picks an agent in the model selector, and `others` to answer beside it."""
        self.page.locator("#model-selector-model-button").click()
        if others:
            self.page.get_by_label("Compare").click()
        for name in (agent, *others):
            wanted = self.page.locator(f"#model-selector-list [role=option][data-value={name}]")
            if not others or wanted.get_attribute("aria-selected") != "true":
                wanted.click()
        if others:
            self.page.keyboard.press("Escape")
        expect(self.page.locator("#model-selector-list")).to_have_count(0)

    def send(self, question: str) -> None:
        """Asks, and waits until the question is in the chat."""
        self.page.locator("#chat-input").fill(question)
        self.page.keyboard.press("Enter")
        expect(self.questions.last).to_contain_text(question)

    def ask(self, question: str) -> None:
        """Asks, and waits until all have answered."""
        self.send(question)
        self.finished()

    def finished(self) -> None:
        """Waits until nothing is being answered any more."""
        expect(self.page.get_by_role("button", name="Regenerate").last).to_be_visible()
        expect(self.page.get_by_role("button", name="Stop", exact=True)).to_have_count(0)

    def stop(self) -> None:
        """Presses the stop button."""
        self.page.get_by_role("button", name="Stop", exact=True).click()

    def regenerate(self) -> None:
        """Asks for the last answer once more."""
        self.page.get_by_role("button", name="Regenerate").last.click()
        self.page.get_by_role("menu").get_by_text("Try Again").click()

    def attach(self, name: str, media_type: str, content: bytes) -> None:
        """Puts a file beside the next question."""
        self.page.locator("input[type=file]").first.set_input_files(
            FilePayload(name=name, mimeType=media_type, buffer=content)
        )
        self.page.locator("#message-input-container img").wait_for()

    def carry_on(self) -> None:
        """Asks for more of the last answer."""
        self.page.get_by_role("button", name="Continue Response").last.click()

    def edit(self, number: int, question: str) -> None:
        """Puts `question` in place of the one with this number, from 0."""
        self.questions.nth(number).hover()
        self.questions.nth(number).get_by_role("button", name="Edit").click()
        self.page.locator("[id^=message-edit-]").fill(question)
        self.page.locator("#confirm-edit-message-button").click()
        expect(self.questions.last).to_contain_text(question)

    def earlier(self) -> None:
        """Goes back to the answer before the one shown."""
        self.answers.last.get_by_role("button", name="Previous message").click()

    @property
    def id(self) -> str:
        """The chat's id, which it has once something was sent."""
        self.page.wait_for_url(re.compile(r"/c/[0-9a-f-]{36}$"))
        return str(self.page.url.rpartition("/")[2])

    @property
    def questions(self) -> Locator:
        """What was asked, in order."""
        return self.page.locator(".user-message")

    @property
    def answers(self) -> Locator:
        """What was answered, in order."""
        return self.page.locator("[id^=message-]:has(.chat-assistant)")

    @property
    def text(self) -> Locator:
        """What the last answer says, its tool cards and its thoughts aside."""
        return self.answers.last.locator("#response-content-container .markdown-prose")

    def cards(self) -> list[Card]:
        """The tool cards of the last answer, each opened."""
        answer = self.answers.last
        for toggle in answer.locator('[aria-label="Toggle details"][aria-expanded=false]').all():
            toggle.click()
        return [self._card(card) for card in answer.locator("[id$=-tool-call]").all()]

    def _card(self, card: Locator) -> Card:
        head = card.get_by_role("button").first
        if card.get_by_text("Output", exact=True).count() == 0:
            head.click()
        expect(card.get_by_text("Output", exact=True)).to_be_visible()
        name = (head.text_content() or "").strip().split(" ")[-1]
        shown, _, output = card.inner_text().partition("OUTPUT")
        return Card(
            name,
            shown.partition("INPUT")[2].strip(),
            output.strip(),
            head.locator(".text-red-500").count() > 0,
        )

    def screenshot(self, what: str) -> None:
        """Keeps how the page looks now."""
        self._taken += 1
        self.page.screenshot(
            path=f"{self._screenshots}-{self._taken}-{what}.png", animations="disabled"
        )
