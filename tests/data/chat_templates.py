"""Chat templates in the style of real models' ones, for comparison with transformers, and conversations for them."""

TEMPLATES = {
    # Mixtral v1: strict alternation, a system prompt goes into the first user turn
    "mixtral": """{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] + '\n\n' %}
    {%- set turns = messages[1:] %}
{%- else %}
    {%- set system = '' %}
    {%- set turns = messages %}
{%- endif %}
{%- for turn in turns %}
    {%- if (turn['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Roles must alternate user/assistant, found ' ~ turn['role'] ~ '!') }}
    {%- endif %}
    {%- if turn['role'] == 'user' %}
        {{- '[INST] ' + (system if loop.first else '') + turn['content'] + ' [/INST]' }}
    {%- elif turn['role'] == 'assistant' %}
        {{- ' ' + turn['content'] | trim + eos_token }}
    {%- else %}
        {{- raise_exception('Unknown role <' + turn['role'] + '>') }}
    {%- endif %}
{%- endfor %}
""",
    # ChatML as SmolLM2 has it: a default system prompt, everything in one expression
    "chatml": "{% for message in messages %}{% if loop.first and message.role != 'system' %}"
    "{{ '<|im_start|>system\nYou are tiny.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    # Llama 3: dates, defaults, tools in the system prompt, trailing newlines eaten by the tags
    "llama3": """{{- bos_token }}
{%- if not date is defined %}
    {%- if strftime_now is defined %}
        {%- set date = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if messages[0].role == "system" %}
    {%- set system = messages[0].content | trim %}{% set messages = messages[1:] %}
{%- else %}
    {%- set system = "" %}
{%- endif %}
{{- "<|start|>system<|end|>\n\nToday is " ~ date ~ ".\n" }}
{%- if tools is not none %}
    {{- "Functions:\n\n" }}
    {%- for tool in tools %}
        {{- tool | tojson(indent=4) }}
        {{- "\n\n" }}
    {%- endfor %}
{%- endif %}
{{- system }}
{%- for message in messages %}
    {%- if not (message.role == "tool" or 'tool_calls' in message) %}
        {{- "<|start|>" ~ message.role ~ "<|end|>\n\n" ~ message.content | trim ~ "<|eot|>" }}
    {%- elif message.tool_calls %}
        {%- if message.tool_calls | length != 1 %}{{ raise_exception("one call at a time") }}{% endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '{"name": "' + call.name + '", "parameters": ' ~ call.arguments | tojson ~ "}" }}
    {%- else %}
        {{- message.content if message.content is string else message.content | tojson }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ "<|start|>assistant<|end|>\n\n" }}{% endif %}
""",
    # MiniMax-Text-01: contents are lists of parts; what the model says stands in a generation block
    "minimax": """{% for message in messages %}{% if message['role'] == 'system' -%}
{{ '<beginning>system ai_setting=assistant\n' + message['content'][0]['text'] + '<end>\n' }}
{%- elif message['role'] == 'user' -%}
{{ '<beginning>user name=user\n' + message['content'] | map(attribute='text') | join('') + '<end>\n' }}
{%- else -%}
<beginning>ai name=assistant
{% generation %}{{ message['content'][0]['text'] + '<end>' }}{% endgeneration %}{{ '\n' }}
{%- endif %}{% endfor %}{% if add_generation_prompt %}{{ '<beginning>ai name=assistant\n' }}{% endif %}""",
    # whitespace: lstrip_blocks, trim_blocks, comments, both kinds of minus, +%}, raw, a line of text at the end
    "whitespace": """  start
    {% if true %}
  kept  {# gone #}
    {# a whole line gone #}
  {%+ if true %}indented{% endif +%}

    {%- set x = 1 -%}

  tight {{- ' joined ' -}} here
  {% raw %}{{ not rendered }}{% endraw %}

  {% endif %}
{{ "last" }}

""",
    # state across loop steps, loop variables, searching backwards
    "namespace": """{% set ns = namespace(count=0, last='', seen=[]) %}
{%- for m in messages if m.role != 'system' %}
{%- set ns.count = ns.count + 1 %}{% set ns.last = m.role %}{% set ns.seen = ns.seen + [m.role] %}
{{ loop.index }}/{{ loop.length }} {{ loop.revindex0 }} {{ loop.first }} {{ loop.last }} {{ loop.cycle('a', 'b') }}
{%- if loop.previtem is defined %} after {{ loop.previtem.role }}{% endif %}
{%- if not loop.last %} before {{ loop.nextitem.role }}{% endif %}{{ ' changed' if loop.changed(m.role) }}
{%- else %}nobody{% endfor %}
{{ ns.count }} {{ ns.last }} {{ ns.seen | unique | join(',') }} {{ messages[::-1] | map(attribute='role') | list }}
{% for i in range(messages | length - 1, -1, -1) %}{{ i }}{{ messages[i].role[:1] }}{{ '' if loop.last else ',' }}
{%- endfor %}
""",
    "loopcontrols": "{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}{{ m.role }}"
    "{% if m.role == 'assistant' %}{% break %}{% endif %};{% endfor %}{% for a, b in {'x': 1, 'y': 2}.items() %}"
    "{{ a }}={{ b }}{% for c in 'pqr' %}{% if c == 'q' %}{% continue %}{% endif %}{{ c }}{{ loop.index }}{% endfor %}"
    "{% endfor %}",
    "tojson": """{{ '<b>&"é好😀\u2028' | tojson }} {{ [1, 2.5, none, true, {'b': 1, 'a': [ ]}] | tojson }}
{{ {'b': 1, 'a': 'é'} | tojson(sort_keys=true, ensure_ascii=true, separators=(',', ':')) }}
{{ messages | tojson(indent=2) }} {{ tools | tojson }} {{ documents is defined }} {{ documents }}""",
    "tools": """{% macro kind(schema) %}{% if schema.type == 'array' %}[{{ kind(schema['items']) }}]
{%- elif schema.enum %}{{ schema.enum | join(' | ') }}{% else %}{{ schema.type | upper }}{% endif %}{% endmacro %}
{% if tools %}{% for tool in tools %}{% set f = tool.function %}
- {{ f.name }}({% for name, schema in f.parameters.properties | dictsort -%}
{{ name }}{{ '' if name in f.parameters.required else '?' }}: {{ kind(schema) }}{{ ', ' if not loop.last }}
{%- endfor %}): {{ f.description | indent(4) | replace('\n', ' ') | truncate(60) }}
{% endfor %}{% endif %}{% for m in messages %}{% if m.tool_calls is defined and m.tool_calls -%}
{% for c in m.tool_calls %}{% set f = c.function %}<call>{{ {"name": f.name, "args": f.arguments} | tojson }}</call>
{%- endfor %}
{% elif m.role == 'tool' %}<result id="{{ m.tool_call_id }}">{{ m.content }}</result>
{% else %}{{ m.role | title }}: {{ m.content if m.content is string else m.content[0].text }}
{% endif %}{% endfor %}""",
    "strings": """{% set text = messages[-1].content if messages[-1].content is string else 'parts' %}
{{ text.split('<think>')[-1].lstrip('\n').strip() }}|{{ text.startswith('H') }}|{{ 'b' in text }}|{{ text[:3] ~ 1 }}
{{ '%s has %d%% of %5.2f' % ('x', 7, 3.14159) }} {{ '{0:>6}|{name!r:<5}'.format(text[:3], name='n') }}
{{ "%05d" | format(42) }} {{ 'ab'.center(6, '-') }} {{ 'x' * 3 }} {{ [1] * 2 + [3] }} {{ 7 // 2 }} {{ 7 / 2 }}
{{ 2 ** 10 }} {{ -7 % 3 }} {{ 1 < 2 < 3 }} {{ 'Hello'.replace('l', 'L', 1) }} {{ ' x '.rstrip() }} {{ none ~ 1 }}
{{ "a,b,,c".split(',') | select | list }} {{ 'x\ny'.splitlines() }} {{ ' a b '.split() }} {{ 'aXbX'.rsplit('X', 1) }}
{{ missing }}{{ missing is undefined }} {{ missing | default('fallback') }} {{ none }} {{ true }} {{ 1.0 }} {{ (1, 2) }}
{{ [3, 1, 2] | sort | first }} {{ [[1, 2], [3]] | sum(start=[]) }} {{ [1, 2, 3] | sum }} {{ 'title case' | title }}
{{ 2.567 | round(1) }} {{ {'a': 1}.get('b', 'no') }} {{ {'a': 1}['a'] }} {{ '<x>' | e }} {{ ('<x>' | safe) ~ '<y>' }}
{{ 'a b' | urlencode }} {{ 5 is odd }} {{ 6 is divisibleby(num=3) }} {{ ['a', 'b'] | map('upper') | join('/') }}""",
    "blocks": """{% macro turn(role, text='') -%}
<{{ role }}>{{ caller() if caller else text }}</{{ role }}>{% endmacro %}
{% for m in messages %}{% call turn(m.role) %}{{ m.content }}{% endcall %}{{ turn('end') }}{% endfor %}
{% set joined %}{% for m in messages %}{{ m.role }},{% endfor %}{% endset %}{{ joined | length }}{{ joined }}
{% filter upper %}{{ messages[0].role }} shout{% endfilter %}{% with a = 1, b = 2 %}{{ a + b }}{% endwith %}
{% for node in [{'n': 1, 'c': [{'n': 2, 'c': []}]}] recursive %}{{ node.n }}({{ loop(node.c) }}){{ loop.depth }}
{%- endfor %}{% set (a, b) = (1, 'two') %}{{ a }}{{ b }}{% block inner %}block{% endblock %}{{ joiner('/')() }}
{{ cycler('x', 'y').next() }} {{ ('<b>{}' | safe).format('<i>') }} {{ '{a}'.format_map({'a': '<i>'}) }}
{% autoescape true %}<i>{{ '<b>' }}{{ 'a' ~ '<' }}</i>{% endautoescape %}{{ dict(a=1) }}""",
    "generation": """{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}
{% set t = m.content %}{{ t }}{{ eos_token }}
{% endgeneration %}{% else %}{{ m.role }}:{{ m.content }}
{% endif %}{{ t is defined }}{% endfor %}""",
    "fails": "{{ messages[0].content.nothing.more }}",
}

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": 'The weather <now> & "here",\nin one of the units that people ask for every day.',
            "parameters": {
                "type": "object",
                "properties": {
                    "place": {"type": "string", "description": "城市"},
                    "unit": {"type": "string", "enum": ["C", "F"]},
                    "days": {"type": "array", "items": {"type": "integer"}},
                },
                "required": ["place"],
            },
        },
    }
]

_CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": {"place": "Århus", "days": [1]}}}
CONVERSATIONS = {
    "one": [{"role": "user", "content": "  Hello <b>\n"}],
    "turns": [
        {"role": "system", "content": "Be brief. 好😀 "},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nYes.  "},
        {"role": "user", "content": "Hm, and?"},
    ],
    "tool": [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "", "tool_calls": [_CALL]},
        {"role": "tool", "tool_call_id": "c1", "content": "22 °C"},
        {"role": "assistant", "content": "Warm."},
    ],
    "parts": [
        {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "c"}]},
    ],
    "repeated": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}],
}
