"""Licences: what the LICENSE file of an adapter says, and which are passed on with it."""

import re
from pathlib import Path

BLOOM_LICENSE = Path(__file__).parent / "bigscience-bloom-rail-1.0.txt"  # as BigScience has published it
LICENSED = "This adapter is licensed under "  # by which a LICENSE file is known as one of ours
LICENSE_ID = re.compile(r"[a-z0-9][a-z0-9.+-]{0,60}")
LICENSES = {
    "apache-2.0": "https://www.apache.org/licenses/LICENSE-2.0",
    "mit": "https://opensource.org/license/mit",
    "cc0-1.0": "https://creativecommons.org/publicdomain/zero/1.0/legalcode",
    "cc-by-4.0": "https://creativecommons.org/licenses/by/4.0/legalcode",
    "bigscience-bloom-rail-1.0": "https://huggingface.co/spaces/bigscience/license",
    "openrail++": "https://huggingface.co/stabilityai/stable-diffusion-xl-base-1.0/blob/main/LICENSE.md",
}
RAIL_DUTIES = (
    (
        "It is a Responsible AI Licence. Its restrictions of use cover works derived from the model, "
        "so this adapter too, and"
    ),
    (
        "whoever passes it on, changed or not, must pass them on in an agreement that binds the next user, "
        "with a copy of the"
    ),
    (
        "licence, and must say what was changed. What was changed here: LoRA weights were trained, "
        "see README.md."
    ),
)
RAIL_IN_SHORT = (
    (
        "In short, and without replacing the licence's text, it must not be used to break the law; "
        "to harm or exploit minors, or"
    ),
    (
        "anybody; to spread false information in order to harm; "
        "to generate or spread personal data that harms; to write without"
    ),
    (
        "saying that a machine has written; to defame or harass; to imitate a person without consent; "
        "to decide by itself what"
    ),
    (
        "rights or duties somebody has; to discriminate or to exploit weaknesses of groups; "
        "for medical advice or the"
    ),
    (
        "interpretation of medical results; nor in the administration of justice, law enforcement, "
        "immigration or asylum to"
    ),
    "predict what people will do.",
)


def is_rail(license: str | None) -> bool:
    """Say whether a licence has use restrictions that are passed on (Responsible AI Licences)."""
    return license is not None and "rail" in license


def has_license_text(license: str | None) -> bool:
    """Say whether the whole text of a licence comes with this project."""
    return license == BLOOM_LICENSE.stem


def write_license(license: str | None, merged: bool) -> str | None:
    """Return the LICENSE file's text, beside a `merged` model or not; None where no licence is stated."""
    if license is None:
        return None
    lines = [f"{LICENSED}{license}."]
    full = has_license_text(license)
    if license in LICENSES:
        place = f"{'below, and ' if full else ''}{LICENSES[license]}"
        lines.append(f"The licence's full text, which is the one that counts: {place}")
    if is_rail(license):
        weights = "Its base's weights are not here."
        if merged:
            weights = "The folder merged/ holds its base's weights, changed by it."
        lines += ["", *RAIL_DUTIES, "", weights]
        lines += (
            ["", "-" * 80, "", BLOOM_LICENSE.read_text(encoding="utf-8").rstrip()]
            if full
            else ["", *RAIL_IN_SHORT]
        )
    return "\n".join(lines) + "\n"
