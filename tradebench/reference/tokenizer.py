"""The reference model's tokenizer: one token per word of the world."""

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from tradebench.reference.world import BOS, END, PAD, UNKNOWN, World

# A user's message becomes a question, unless it already is a prompt in the model's own form. The
# space before an answer stays outside the generation block: a mask cannot start on white space.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- if message['role'] == 'user' -%}
{{- bos_token + ' ' -}}
{%- if ' : ' in message['content'] -%}
{{- message['content'].strip() + ' ' -}}
{%- else -%}
{{- 'question : ' + message['content'].strip() + ' answer : ' -}}
{%- endif -%}
{%- elif message['role'] == 'assistant' -%}
{% generation %}{{- message['content'].strip() + ' ' + eos_token -}}{% endgeneration %}
{%- endif -%}
{%- endfor -%}"""


def tokenizer(world: World) -> PreTrainedTokenizerFast:
    """Splits on white space; the full stop ends a document, so it is the end-of-text token."""
    words = Tokenizer(models.WordLevel(dict(world.index), unk_token=UNKNOWN))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, world.index[BOS])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        unk_token=UNKNOWN,
        bos_token=BOS,
        eos_token=END,
        pad_token=PAD,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )
