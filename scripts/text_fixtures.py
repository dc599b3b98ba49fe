#!/usr/bin/env python3
"""Writes what transformers makes of chat templates and texts with the embedded policy's tokenizer.

    python3 -m venv /tmp/parity
    /tmp/parity/bin/pip install transformers==5.23.0 jinja2
    /tmp/parity/bin/python scripts/text_fixtures.py            writes crates/model/tests/data/prompts.json
    /tmp/parity/bin/python scripts/text_fixtures.py --check    exits with 1 if the file differs

The templates are small ones of our own, one for each group of things that chat templates do. `parity_text.py` compares
whole data sets with the templates of real models, which are not ours to keep here.
"""

import json
import pathlib
import sys

from transformers import PreTrainedTokenizerFast

ROOT = pathlib.Path(__file__).resolve().parent.parent
FIXTURE = ROOT / "crates" / "model" / "tests" / "data" / "prompts.json"
SPECIAL = {"bos_token": "<|user|>", "eos_token": "<|end|>", "pad_token": "<|pad|>"}

TEMPLATES = {
    "plain": "{{ bos_token }}{% for message in messages %}[{{ message.role }}] {{ message['content'] }}{{ eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}",
    "white space": """{# A comment. #}
{%- for message in messages %}
    {% if message.role == 'user' %}
        {{- 'user: ' + message.content }}
    {% endif %}
    {{ loop.index0 }} of {{ loop.length }}, {{ loop.first }} {{ loop.last }}
{%- endfor %}

{% if add_generation_prompt -%}
    answer:
{% endif %}
end
""",
    "namespace": "{% set ns = namespace(system='', count=0) %}{% for m in messages %}{% if m.role == 'system' %}"
    "{% set ns.system = m.content %}{% else %}{% set ns.count = ns.count + 1 %}{% endif %}{% endfor %}"
    "{{ ns.system }}/{{ ns.count }}/{{ messages[0].content }}/{{ messages[-1]['role'] }}/{{ messages[::-1][0].content }}",
    "string methods": "{% set text = messages[0].content %}{{ text.split('=')[-1] }}|{{ text.strip() }}|"
    "{{ text.rstrip('. ') }}|{{ text.upper() }}|{{ text.replace('a', 'b') }}|{{ text.startswith('Make') }}|"
    "{{ text.lstrip('M') }}|{{ text[:3] }}|{{ text | length }}|{{ text | trim | upper }}",
    "tests and defaults": "{% if tools %}tools{% endif %}{% if not enable_thinking is defined %}{% set enable_thinking = true %}"
    "{% endif %}{{ messages[0].content is string }} {{ messages[0].name is defined }} {{ none is none }} "
    "{{ missing | default('nothing') }} {{ 'x' in messages[0].content }} {{ ['a', 'b'] | join('-') }}"
    "{{ '<think>\\n' if enable_thinking else '<think>\\n</think>\\n' }}",
    "macros and loops": "{% macro turn(m) %}<{{ m.role }}>{{ m.content | trim }}</{{ m.role }}>{% endmacro %}"
    "{% for i in range(5) %}{% if i == 1 %}{% continue %}{% endif %}{% if i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}"
    "{% for m in messages if m.role != 'system' %}{{ turn(m) }}{% endfor %}",
    "generation": "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{%- endgeneration -%}"
    "{% else %}{{ m.content }}{% endif %}\n{% endfor %}<|assistant|>",
    "closed thought": "{{ messages[0].content }}<|assistant|><think>\n</think>\n",
}
TEXTS = [
    "Make 18 from 4, 8, 9.",
    "",
    "  a = b,\n\tc = {{ messages }} {% if x %} 'y' \"z\" <b> & \\boxed{1}  ",
    "written out: <|user|><|end|> and <think>\nx\n</think>\n",
]


def fixture():
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(ROOT / "crates" / "model" / "embedded" / "tokenizer.json"), **SPECIAL
    )
    rows = []
    for name, template in TEMPLATES.items():
        for text in TEXTS:
            message = [{"role": "user", "content": text}]
            ask = {"chat_template": template, "add_generation_prompt": True}
            prompt = tokenizer.apply_chat_template(message, tokenize=False, **ask)
            ids = tokenizer.apply_chat_template(message, return_dict=True, **ask)["input_ids"]
            opens = prompt.rfind("<think>") > prompt.rfind("</think>")
            rows.append({"name": name, "text": text, "prompt": prompt, "ids": list(ids), "opens_thought": opens})
    return json.dumps({"special": SPECIAL, "templates": TEMPLATES, "rows": rows}, indent=1, ensure_ascii=False) + "\n"


def main():
    text = fixture()
    if sys.argv[1:] == ["--check"]:
        if FIXTURE.read_text(encoding="utf-8") != text:
            sys.exit(f"{FIXTURE} is not what this transformers computes")
    elif sys.argv[1:]:
        sys.exit(__doc__)
    else:
        FIXTURE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
