"""Makes `examples/flags/unseen/`: pictures of the dev countries in drawing styles that no training picture has.

    pip install resvg-py
    python examples/flags/prepare_unseen.py --out examples/flags/unseen

Downloads three packages (12 MB) with `npm pack`, which has to be installed, takes the drawings out of them and writes
`<entity>__<style>.png` (256 pixels on the long side, on white), `sources.json` and `README.md`. The renderer is resvg:
CairoSVG leaves most of a drawing out that stands under a mask, as those of Circle Flags do.

The pictures are for demonstration and reporting only. Nothing may train on them.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from PIL import Image


sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a program, it stands beside, not in, `flags`
from flags.attribution import MIT_NOTICE
from flags.world import load_world


SIDE = 256
COLOURS = 128  # of a picture's palette
RASTERISED = "The vector drawings were rasterised to 256 pixels, laid on white and reduced to 128 colours."
SOURCES: dict[str, dict[str, str]] = {
    "circleflags": {
        "package": "@iconify-json/circle-flags",
        "version": "1.2.11",
        "source": "Circle Flags",
        "author": "HatScripts",
        "url": "https://github.com/HatScripts/circle-flags",
        "licence": "MIT",
        "licence_url": "https://github.com/HatScripts/circle-flags/blob/gh-pages/LICENSE",
        "notice": MIT_NOTICE.format(holder="2021 HatScripts"),
        "changes": RASTERISED,
    },
    "emojione": {
        "package": "@iconify-json/emojione",
        "version": "1.2.3",
        "source": "Emoji One 2.3.0 (Colored)",
        "author": "Emoji One",
        "url": "https://github.com/EmojiTwo/emojitwo",
        "licence": "CC-BY-4.0",
        "licence_url": "https://creativecommons.org/licenses/by/4.0/",
        "notice": "Emoji One 2.3.0 by Emoji One, licensed under CC BY 4.0; rasterised, in fewer colours.",
        "changes": RASTERISED,
    },
    "notowaved": {
        "package": "@expo-google-fonts/noto-color-emoji",
        "version": "0.4.6",
        "source": "Noto Color Emoji 2.051",
        "author": "Google Inc.",
        "url": "https://github.com/googlefonts/noto-emoji",
        "licence": "OFL-1.1",
        "licence_url": "https://openfontlicense.org/open-font-license-official-text/",
        "notice": "Copyright 2021 Google Inc. All Rights Reserved. The font is licensed under the SIL Open Font "
        "License, Version 1.1, which does not extend to documents made with it. The noto-emoji project says that the "
        "flags are in the public domain or otherwise exempt from copyright (third_party/region-flags/LICENSE).",
        "changes": RASTERISED + " They are drawings of the font's SVG table, cut to their bounds.",
    },
}

# How Emoji One calls a country where `kb.jsonl` says it otherwise.
EMOJIONE_NAMES = {
    "ax": "aland-islands",
    "bl": "st-barthelemy",
    "hk": "hong-kong-sar-china",
    "lc": "st-lucia",
}

# In the package of Circle Flags, `ie` is the flag of the language Interlingue; Ireland's is there as that of Irish.
CIRCLE_NAMES = {"ie": "lang-ga"}

README = """\
# Flags in unseen drawing styles

{num_pictures} pictures of the {num_entities} dev countries (`load_world().dev`), as {num_styles} projects draw them
that no picture of `../data/` comes from: two draw flags as discs, one as waving cloth. The program
`prepare_unseen.py`, one folder up, wrote everything here: change it there.

**For demonstration and reporting only: nothing may train on these pictures, nor choose a checkpoint by them.** New is
the drawing, not the country: a dev country is never trained on, but checkpoints are chosen by its pictures in the
seven styles of `../data/`.

A picture is `<entity>__<style>.png`: RGB colours on white in a palette of at most {colours}, {side} pixels on the
long side. `flags.unseen_styles.unseen_pictures()` lists them, `sources.json` is the table below for programs.

| style | pictures | source | author | licence |
|---|---|---|---|---|
{rows}

Changes: {changes}

What the licences ask of whoever passes these pictures on:

* **Circle Flags** (MIT): keep the copyright line and the permission notice printed below. (The package calls the
  flag of Interlingue `ie`; the picture of Ireland is its `lang-ga`, the same flag for the Irish language.)
* **Emoji One** (CC BY 4.0): credit Emoji One, link the licence, and say that the drawings were rasterised, as this
  page does. This holds for version 2 of that set only; later ones have other licences.
* **Noto Color Emoji** (SIL OFL 1.1 for the font): the font is not in this folder, and its licence does not extend to
  documents made with it, which these pictures are in our reading, not legal advice. Its project says that the flags
  are in the public domain or otherwise exempt from copyright.

The use of a national flag can have legal limits of its own, whoever drew it. The code of this repository is under
Apache-2.0; that licence does not extend to this folder.

## Notice of Circle Flags

```text
{mit}```
"""


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write; its pictures of the same names go")
    options = parser.parse_args(arguments)
    try:
        prepare(options.out)
    except ImportError as error:
        sys.exit(f"prepare_unseen.py: {error}; run `pip install resvg-py`")
    except (OSError, ValueError, KeyError, subprocess.CalledProcessError) as error:
        sys.exit(f"prepare_unseen.py: {error!r}")
    sizes = [path.stat().st_size for path in options.out.iterdir()]
    print(f"{sum(sizes):,} bytes in {len(sizes)} files of {options.out}")


def prepare(out: Path) -> None:
    """Download, render and write everything."""
    world = load_world()
    names = {entity: world.entities[entity]["name"].lower().replace(" ", "-") for entity in world.dev} | EMOJIONE_NAMES
    with tempfile.TemporaryDirectory() as name:
        downloads = Path(name)
        tarballs = {style: download(row["package"], row["version"], downloads) for style, row in SOURCES.items()}
        font = waved_font(tarballs["notowaved"], downloads)
        circles, emojione = (read_icons(tarballs[style]) for style in ("circleflags", "emojione"))
        pictures = {}
        for entity in world.dev:
            pictures[entity, "circleflags"] = render(icon_svg(circles, CIRCLE_NAMES.get(entity, entity)))
            pictures[entity, "emojione"] = render(icon_svg(emojione, f"flag-for-{names[entity]}"))
            pictures[entity, "notowaved"] = render(waved_svg(entity), font)
    out.mkdir(parents=True, exist_ok=True)
    for (entity, style), picture in pictures.items():
        picture.quantize(COLOURS, dither=Image.Dither.NONE).save(out / f"{entity}__{style}.png", optimize=True)
    write_text(out / "sources.json", json.dumps(SOURCES, indent=2, ensure_ascii=False) + "\n")
    write_text(out / "README.md", readme(list(pictures)))


def download(package: str, version: str, folder: Path) -> Path:
    """Fetch one package of exactly that version; returns its tarball."""
    command = ["npm", "pack", f"{package}@{version}", "--pack-destination", str(folder)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return folder / done.stdout.split()[-1]


def read_member(tarball: Path, suffix: str) -> bytes:
    """The first file of a tarball whose name ends so; nothing is unpacked."""
    with tarfile.open(tarball) as archive:
        member = next((member for member in archive if member.isfile() and member.name.endswith(suffix)), None)
        if member is None:
            raise ValueError(f"{tarball.name} has no file named *{suffix}")
        return archive.extractfile(member).read()


def read_icons(tarball: Path) -> dict:
    return json.loads(read_member(tarball, "package/icons.json"))


def icon_svg(icons: dict, name: str) -> str:
    """One drawing of an Iconify set as a document of its own."""
    icon = icons["icons"][name]
    width, height = (icon.get(side, icons[side]) for side in ("width", "height"))
    return svg(f"0 0 {width} {height}", icon["body"])


def waved_svg(entity: str) -> str:
    """A country's two regional indicators as text: the font has one glyph for the pair."""
    letters = "".join(f"&#x{0x1F1E6 + ord(letter) - ord('a'):x};" for letter in entity)
    return svg("0 0 130 130", f'<text y="105" font-size="100" font-family="Noto Color Emoji">{letters}</text>')


def svg(view_box: str, body: str) -> str:
    spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'<svg {spaces} viewBox="{view_box}">{body}</svg>'


def waved_font(tarball: Path, folder: Path) -> Path:
    """The emoji font without its table of gradients, whose masks resvg does not draw: it then takes the SVG table."""
    font = read_member(tarball, ".ttf")
    path = folder / "waved.ttf"
    path.write_bytes(font.replace(b"COLR", b"COLX", 1))  # the first is the name in the table directory
    return path


def render(document: str, font: Path | None = None) -> Image.Image:
    """Draw a document on white, `SIDE` pixels on the long side; text is cut to what its glyphs cover."""
    import resvg_py

    scale = 4 if font else 1  # text is cut first and made smaller then
    fonts = {"font_files": [str(font)], "skip_system_fonts": True} if font else {}
    encoded = bytes(resvg_py.svg_to_bytes(svg_string=document, width=scale * SIDE, **fonts))
    drawing = Image.open(io.BytesIO(encoded)).convert("RGBA")
    bounds = drawing.getchannel("A").getbbox()
    if bounds is None:
        raise ValueError(f"nothing was drawn of {document[:200]}")
    if font:
        drawing = drawing.crop(bounds)
        ratio = SIDE / max(drawing.size)
        drawing = drawing.resize([round(ratio * side) for side in drawing.size], Image.Resampling.LANCZOS)
    white = Image.new("RGBA", drawing.size, "white")
    return Image.alpha_composite(white, drawing).convert("RGB")


def readme(keys: list[tuple[str, str]]) -> str:
    rows = [
        f"| `{style}` | {sum(key[1] == style for key in keys)} "
        f"| [{row['source']}]({row['url']}), npm {row['package']} {row['version']} | {row['author']} "
        f"| [{row['licence']}]({row['licence_url']}) |"
        for style, row in SOURCES.items()
    ]
    return README.format(
        num_pictures=len(keys),
        num_entities=len({entity for entity, _ in keys}),
        num_styles=len(SOURCES),
        colours=COLOURS,
        side=SIDE,
        rows="\n".join(rows),
        changes=SOURCES["notowaved"]["changes"].replace("They are", "Those of `notowaved` are"),
        mit=SOURCES["circleflags"]["notice"],
    )


def write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
