"""The prompt template as Jinja, for programs that render messages to text: servers, above all.

It renders what `model.processing.processor` builds by parts, with two differences: text that spells a control token
becomes one, which no rendering can avoid, and videos are not known (give their frames as images).
"""

import json

from model.interface import (
    DEFAULT_SYSTEM_TEXT,
    IM_END,
    IM_START,
    IMAGE_CONTEXT,
    IMAGE_END,
    IMAGE_START,
    Mode,
)

FILE = "chat_template.jinja"
KNOWS_AUTO = f"thinking == '{Mode.auto.template_value}'"
"""Stands in a template that knows `Mode.auto`. One that was written before takes the value for thinking mode."""

_TEMPLATE = """\
{%- set last = namespace(user=-1) -%}
{%- for message in messages -%}
{%- if message['role'] == 'user' -%}{%- set last.user = loop.index0 -%}{%- endif -%}
{%- endfor -%}
{%- if messages[0]['role'] != 'system' -%}{{- START + 'system\\n' + SYSTEM + END -}}{%- endif -%}
{%- for message in messages -%}
{{- START + message['role'] + '\\n' -}}
{%- if message['content'] is string -%}
{{- message['content'] -}}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'text' -%}{{- part['text'] -}}{%- else -%}{{- IMAGE -}}{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- if loop.index0 == last.user -%}
{%- if thinking == 'if_needed' -%}{{- AUTO_INSTRUCTION -}}{%- elif thinking -%}{{- INSTRUCTION -}}{%- endif -%}
{%- endif -%}
{{- END -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- START + 'assistant\\n' -}}{%- endif -%}
"""


def chat_template(instruction_on_new_line: bool) -> str:
    """Jinja source. Variables: `messages`, `add_generation_prompt`, and `thinking`: true asks for thinking mode,
    "if_needed" for `Mode.auto`."""
    line = "\n" if instruction_on_new_line else ""
    values = {
        "INSTRUCTION": line + Mode.think.instruction,
        "AUTO_INSTRUCTION": line + Mode.auto.instruction,
        "SYSTEM": DEFAULT_SYSTEM_TEXT,
        "IMAGE": f"{IMAGE_START}{IMAGE_CONTEXT}{IMAGE_END}\n",
        "START": IM_START,
        "END": IM_END,
    }
    sets = [f"{{%- set {name} = {json.dumps(text, ensure_ascii=False)} -%}}\n" for name, text in values.items()]
    return "".join(sets) + _TEMPLATE.rstrip("\n")
