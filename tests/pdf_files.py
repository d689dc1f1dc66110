"""PDF files for tests, written by reportlab and Pillow."""

from __future__ import annotations

from pathlib import Path

from PIL import Image


TITLE = "Kettle Manual"
CARE = "Rinse the kettle with clear water once a week, and descale it with vinegar when white spots show."
POWER = "Plug the base into a socket with 230 volts. The blue lamp glows while the water is heated."


def manual(path: Path, outline: bool = True, encrypt: str | None = None) -> Path:
    """Three pages: power, with a figure; care; a page without a word on it that holds a red square."""
    from reportlab.lib.pagesizes import A4
    from reportlab.pdfgen.canvas import Canvas

    path.parent.mkdir(exist_ok=True)
    page = Canvas(str(path), pagesize=A4, encrypt=encrypt)
    page.setTitle(TITLE)
    for number, (heading, words) in enumerate([("1 Power", POWER), ("2 Care and cleaning", CARE), ("", "")], start=1):
        if heading:
            page.setFont("Helvetica", 8)
            page.drawString(60, 820, f"Kettle Manual, 2nd edition {number}")
            page.setFont("Helvetica-Bold", 16)
            page.drawString(60, 760, heading)
            page.setFont("Helvetica", 10)
            for line, start in enumerate(range(0, len(words.split()), 10)):
                page.drawString(60, 730 - 13 * line, " ".join(words.split()[start : start + 10]))
            if outline:
                page.bookmarkPage(heading)
                page.addOutlineEntry(heading, heading)
        if number == 1:
            page.drawInlineImage(Image.new("RGB", (60, 40), "blue"), 100, 400, 300, 200)
            page.drawString(100, 385, "Figure 1: The base with its lamp.")
        if number == 3:
            page.setFillColor("red")
            page.rect(100, 300, 400, 400, stroke=0, fill=1)
        page.showPage()
    page.save()
    return path


def scan(path: Path, colour: str = "green") -> Path:
    """One page that is an image."""
    Image.new("RGB", (300, 400), colour).save(path, "PDF")
    return path
