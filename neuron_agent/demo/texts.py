"""What the demo model knows: its conversations, and the words its tokenizer was made from.

Plain data, for the builder, for tests and for the README. It knows neither torch nor tokenizers.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

SYSTEM_PROMPT = "You are a helpful assistant."
"""A conversation that may open with this gets the same reply with it and without."""

UNKNOWN_REPLY = (
    "I am a very small model and know only a few texts by heart. "
    "Ask me who I am, or to tell you about Cortex."
)
"""What most prompts get that are not in `CONVERSATIONS`; every prompt gets something that ends."""

WEATHER_TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the current weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}


@dataclass(frozen=True, slots=True)
class Conversation:
    """A request the model answers word for word at temperature 0, as a client would send it."""

    name: str
    messages: tuple[dict[str, Any], ...]
    reply: str
    tools: tuple[dict[str, Any], ...] = ()
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)


def _says(role: Literal["user", "assistant"], content: str) -> dict[str, Any]:
    return {"role": role, "content": content}


def _ask(name: str, question: str, reply: str) -> Conversation:
    return Conversation(name, (_says("user", question),), reply)


def _weather_call(call_id: str, arguments: str) -> dict[str, Any]:
    function = {"name": "get_weather", "arguments": arguments}
    return {"id": call_id, "type": "function", "function": function}


_ABOUT_CORTEX = (
    "Cortex puts all your GPU machines behind one address. On each machine a small daemon, the "
    "neuron, loads open models and generates text with them. In front stands the control plane: "
    "it knows every model, every device and every request. When a model is asked for that is not "
    "loaded, Cortex looks for a machine with room, evicts an idle model if it must, and keeps the "
    "client waiting no longer than the disk is slow. When a card fails, its work moves to another "
    "one. Clients speak to Cortex as they speak to any hosted service, so their programs need "
    "nothing but a new address. Nothing leaves the house: the prompts, the weights and the "
    "records stay on your own machines. An admin page shows what runs where, how fast it is, and "
    "why each decision was taken."
)

_PARIS_QUESTION = _says("user", "What is the weather in Paris?")
_PARIS_CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
_TOKYO_CALL = _PARIS_CALL.replace("Paris", "Tokyo")

CONVERSATIONS: tuple[Conversation, ...] = (
    _ask("greeting", "Hello!", "Hello! I am the demo model of Cortex. What can I do for you?"),
    _ask("identity", "Who are you?", "I am cortex-demo, a small model that knows a few texts."),
    _ask("about", "Tell me about Cortex.", _ABOUT_CORTEX),
    _ask(
        "emoji",
        "Show me some emoji.",
        "Here you are: 🚀 🌍 🦊 👩‍🚀 🎉 and, for good measure, 日本語 and a naïve café.",
    ),
    _ask("capital", "What is the capital of France?", "The capital of France is Paris."),
    _ask("count", "Count to one hundred.", " ".join(str(n) for n in range(1, 101))),
    _ask(
        "haiku",
        "Write a haiku about a computer.",
        "Fans hum in the dark,\nnumbers drift from core to core:\na word, then the next.",
    ),
    _ask("json", "Give me a person as JSON.", '{"name": "Ada", "age": 36, "languages": ["en"]}'),
    _ask(
        "code",
        "Write a loop in Python.",
        "Here is a loop:\n\n```python\nfor number in range(3):\n    print(number)\n```\n\n"
        "It prints 0, 1 and 2.",
    ),
    _ask("german", "Say good morning in German.", "Guten Morgen! Schöne Grüße aus dem Rechner."),
    _ask("thanks", "Thank you!", "You are welcome."),
    _ask("sum", "What is 17 + 25?", "17 + 25 = 42"),
    Conversation(
        "thinking",
        (_says("user", "What is 17 + 25?"),),
        "<think>\nSeven and five is twelve, ten and twenty is thirty. Together that is 42.\n"
        "</think>\n\nThe sum is 42.",
        chat_template_kwargs={"enable_thinking": True},
    ),
    _ask("name", "My name is Ada.", "Nice to meet you, Ada."),
    Conversation(
        "two turns",
        (
            _says("user", "My name is Ada."),
            _says("assistant", "Nice to meet you, Ada."),
            _says("user", "What is my name?"),
        ),
        "Your name is Ada.",
    ),
    Conversation(
        "weather without a tool",
        (_PARIS_QUESTION,),
        "I cannot know: nobody gave me a tool to look at the weather.",
    ),
    Conversation("tool call", (_PARIS_QUESTION,), _PARIS_CALL, (WEATHER_TOOL,)),
    Conversation(
        "two tool calls",
        (_says("user", "Compare the weather in Tokyo and in Paris."),),
        f"{_TOKYO_CALL}\n{_PARIS_CALL}",
        (WEATHER_TOOL,),
    ),
    Conversation(
        "thinking before a tool call",
        (_PARIS_QUESTION,),
        f"<think>\nI have a tool for that.\n</think>\n\n{_PARIS_CALL}",
        (WEATHER_TOOL,),
        {"enable_thinking": True},
    ),
    Conversation(
        "tool result",
        (
            _PARIS_QUESTION,
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [_weather_call("call_1", '{"city": "Paris"}')],
            },
            {
                "role": "tool",
                "tool_call_id": "call_1",
                "content": '{"celsius": 18, "sky": "clear"}',
            },
        ),
        "It is 18 degrees in Paris, and the sky is clear.",
        (WEATHER_TOOL,),
    ),
    Conversation(
        "greeting beside a tool",
        (_says("user", "Hello!"),),
        "Good day! I can look up the weather for you.",
        (WEATHER_TOOL,),
    ),
)

_WORDS = """
    a able about above across act add after again against age ago agree air all allow almost
    alone along already also although always am among an and animal another answer any anything
    appear apple are area arm around arrive art as ask at away baby back bad bag ball bank base
    be bear beautiful because become bed before begin behind believe below beside best better
    between beyond big bird bit black blue board boat body book both bottom box boy branch bread
    break bridge bright bring brother brown build building burn business busy but buy by call
    came can capital car card care carry case cat catch cause center century certain chair
    chance change character check child children choose church circle city class clean clear
    clock close cloud coast cold collect color come common company compare complete computer
    condition consider contain continue control cook cool copy corner correct cost could count
    country course cover create cross crowd cry current cut dance danger dark data day dead deal
    dear decide deep degree depend describe desert design develop did die difference different
    difficult dinner direct discover do doctor does dog dollar done door double down draw dream
    dress drink drive drop dry during each ear early earth ease east easy eat edge effect egg
    eight either electric else end energy engine enjoy enough enter equal even evening event
    ever every exact example except excite exercise expect experience experiment explain express
    eye face fact fall family famous far farm fast father favor fear feed feel feet few field
    fight figure fill final find fine finger finish fire first fish fit five floor flow flower
    fly follow food foot for force foreign forest form forward found four free fresh friend from
    front fruit full fun game garden gave general gentle get girl give glad glass go gold gone
    good got govern grand grass gray great green ground group grow guess guide had hair half
    hand happen happy hard has hat have he head hear heart heat heavy held help her here high
    hill him his history hold hole home hope horse hot hour house how however huge human hundred
    hunt hurry I ice idea if imagine important in inch include increase indicate industry inside
    instead interest into invent iron is island it job join joy jump just keep key kill kind
    king knew know lake land language large last late laugh law lay lead learn least leave left
    leg length less let letter level library lie life lift light like line list listen little
    live local locate lone long look lost lot loud love low machine made magnet main major make
    man many map mark market mass master match material matter may maybe me mean measure meat
    meet melody memory men metal method middle might mile milk million mind minute miss mix
    model modern moment money month moon more morning most mother motion mount mountain mouth
    move much music must my name nation nature near necessary neck need never new news next
    night nine no noise noon nor north nose note nothing notice noun now number object observe
    ocean of off offer office often oil old on once one only open operate opposite or order
    other our out over own page paint pair paper parent part party pass past path pattern pay
    people perhaps period person phrase picture piece place plain plan plane planet plant play
    please point poor population position possible post pound power practice prepare present
    press pretty print probable problem process produce product program promise property protect
    prove provide public pull push put question quick quiet quite race radio rain raise ran
    range rather reach read ready real reason receive record red region remember repeat reply
    report represent require rest result return rich ride right ring rise river road rock room
    root rope rose round row rule run safe said sail salt same sand save saw say scale school
    science sea search season seat second section see seed seem select self sell send sense
    sentence separate serve set settle seven several shape share sharp she sheet shine ship shoe
    shop short should shoulder shout show side sign silent silver similar simple since sing
    single sister sit six size skill skin sky sleep slow small smell smile snow so social soft
    soil soldier solution solve some something song soon sort sound south space speak special
    speech speed spell spend spoke spring square stand star start state station stay steam steel
    step stick still stone stood stop store story straight strange stream street strong student
    study subject success such sudden sugar suggest summer sun supply support sure surface
    surprise swim system table take talk tall teach team tell temperature ten term test than
    that the their them then there these they thick thin thing think third this those though
    thought thousand three through time tiny to today together told tone too took tool top total
    touch toward town track trade train travel tree triangle trip trouble true try turn twenty
    two type under understand unit until up upon us use usual valley value various very view
    village visit voice vowel wait walk wall want war warm was wash watch water wave way we wear
    weather week weight well went were west what wheel when where which while white who whole
    whose why wide wife wild will win wind window winter wish with without woman wonder wood
    word work world would write wrong year yellow yes yet you young your
"""

COMMON_WORDS: tuple[str, ...] = tuple(_WORDS.split())
"""Everyday English: gives the tokenizer its merges and unknown prompts their words."""
