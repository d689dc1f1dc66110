"""Knows the many ways in which people ask: a grammar of questions, English and Chinese, some families kept out.

A question is a frame ("Tell me the ... of ..."), a noun for what is asked ("currency", "money", "货币") and words for
whose it is ("this country", "该国"); or it is one of the sentences that people say outright ("What do people pay
with?"). Thousands of wordings come out of it. Whole families of frames and sentences (`KEPT_OUT`) are never trained
on: they measure whether a reader understands what is asked, or only knows the sentences that it was taught.
"""

from __future__ import annotations

import random

from flags.questions import OFFICIAL, PARAPHRASES, UNSEEN


CHINESE_SHARE, OFFICIAL_SHARE, FRAMED_SHARE, CHATTER_SHARE = 0.3, 0.2, 0.55, 0.25
NOISE_SHARE, STREWN_SHARE, MADE_UP_SHARE = 0.4, 0.25, 0.5  # of `ask_in_noise`: of all, of framed ones, of idle words

# What is asked about: a noun that fits into any frame. "describe" and "meaning" are about the flag, the rest about
# the country.
NOUNS = {
    "name": (
        *("name", "country name", "official short name", "country", "nation", "identity", "name of the country"),
        *("state", "territory", "name of the nation", "proper name", "common name", "title", "homeland"),
    ),
    "capital": (
        *("capital", "capital city", "seat of government", "national capital", "chief city", "capital town"),
        *("metropolis", "main city", "administrative centre", "government city", "first city", "seat of power"),
    ),
    "language": (
        *("language", "official language", "national language", "spoken language", "main language", "tongue"),
        *("mother tongue", "language of the people", "languages", "official languages", "speech", "idiom", "lingo"),
        *("vernacular", "state language", "first language"),
    ),
    "currency": (
        *("currency", "money", "legal tender", "unit of money", "monetary unit", "national currency", "cash"),
        *("means of payment", "official money", "coins", "banknotes", "coinage", "tender", "local money", "bills"),
        *("currency unit", "kind of money", "local currency", "name of the money"),
    ),
    "subregion": (
        *("region", "part of the world", "world region", "location", "geographic region", "corner of the world"),
        *("place on the map", "subregion", "whereabouts", "position on the globe", "area of the globe"),
        *("continent", "neighbourhood", "part of the globe", "zone", "geographical location", "site", "area"),
        *("geographic position", "sub-region", "part of its continent"),
    ),
    "meaning": (
        *("meaning", "symbolism", "significance", "message", "meaning of the colours", "meaning of the symbols"),
        *("sense", "idea behind the colours", "symbolic meaning", "interpretation", "symbols and their meaning"),
        *("explanation of the colours", "reason for the colours", "thought behind the design"),
    ),
    "describe": (
        *("description", "full description", "detailed description", "short portrait", "summary", "overall picture"),
        *("account", "portrayal", "presentation", "overview", "complete description", "long description"),
    ),
}
COUNTRIES = (
    *("this country", "the country with this flag", "this nation", "the country shown", "that country", "this place"),
    *("the country that flies this flag", "the place with this flag", "this land", "the territory in the picture"),
    *("the state whose flag this is", "the country in the image", "this territory", "the nation with this banner"),
    *("the country this flag belongs to", "the pictured country", "the owner of this flag"),
)
FLAGS = (
    *("this flag", "the flag", "this banner", "the flag in the picture", "the flag shown", "that flag"),
    *("the pictured flag", "this national flag", "the flag here"),
)
# Whose it is in a few words thrown together, as people type into a search box.
KEYWORDS = (
    *("country", "nation", "land", "state", "country here", "flag", "banner", "national flag", "flag of country"),
    *("flag shown", "country shown", "nation with flag", "flag in picture", "its flag", "whose flag", "this"),
)
FRAMES = (
    "What is the {noun} of {whose}?",
    "What's the {noun} of {whose}?",
    "Name the {noun} of {whose}.",
    "Tell me the {noun} of {whose}.",
    "Give the {noun} of {whose}.",
    "Which {noun} does {whose} have?",
    "Can you tell me the {noun} of {whose}?",
    "Please give me the {noun} of {whose}.",
    "{noun} of {whose}?",
    "{noun} of {whose}",
    "The {noun} of {whose}, please.",
    "For {whose}, what is the {noun}?",
    "State the {noun} of {whose}.",
    "Do you know the {noun} of {whose}?",
    "I want the {noun} of {whose}.",
    "Look at {whose}: what is its {noun}?",
    "Look up the {noun} of {whose}.",
    "What about the {noun} of {whose}?",
    "What would you call the {noun} of {whose}?",
    "{noun}?",
    "The {noun}?",
    "{noun}",
    "And the {noun}?",
    "How about {whose}? I mean the {noun}.",
    "Find the {noun} of {whose}.",
    "Write down the {noun} of {whose}.",
    "What {noun} belongs to {whose}?",
    "Show the {noun} of {whose}.",
    "Question: {noun} of {whose}?",
    "Topic: {noun}. Object: {whose}.",
    "{whose}: {noun}",
    "{whose} -> {noun}",
    "Wanted: the {noun} of {whose}!",
    "To do: find out the {noun} of {whose}.",
    "Is there a {noun} of {whose}, and what is it?",
    "I'm looking for the {noun} of {whose}.",
    "Help me with the {noun} of {whose}.",
    "Let me know the {noun} of {whose}.",
    "What can you say on the {noun} of {whose}?",
    "Could it be that you have the {noun} of {whose}?",
    "Say what the {noun} of {whose} is.",
    "Who can say what {noun} {whose} has?",
    "Identify the {noun} of {whose}.",
    "What do we call the {noun} of {whose}?",
    "{noun} (of {whose})",
    "Determine the {noun} for {whose}.",
    "What, please, is the {noun} of {whose}?",
    "Whose {noun} would that be: what is the {noun} of {whose}?",
    "Enter the {noun} here:",
    "{noun} -",
    "{noun} =",
    "Your task: give the {noun} of {whose}.",
    "Here you see {whose}. Its {noun}?",
    "It would help me to have the {noun} of {whose}.",
    "Does {whose} have a {noun}? Which one?",
)
# What is said outright, beside the paraphrases of `flags.questions`.
SENTENCES = {
    "name": (
        *("Which land is this?", "Tell me where this flag belongs.", "What state is shown?", "Guess the country."),
        *("Which people fly this banner?", "Name it.", "What is this place called?", "Say which country you see."),
        *("What is this?", "Which flag is this?", "What flag am I looking at?", "Who does this flag stand for?"),
        *("What country is that?", "Which nation's flag do you see?", "Where does this flag come from?"),
        *("Recognise this flag?", "Whose colours are these?", "Which state has this flag?"),
        *("Which territory is this?", "Where would I see this flag flying?", "Who uses it?"),
    ),
    "capital": (
        *(
            "In which city does the government work?",
            "Where do its ministers meet?",
            "Which city is the seat of power?",
        ),
        *("Where is this nation governed from?", "What is its main city called?", "Which city rules this land?"),
        *("Where does the government sit?", "Which city governs this country?", "From which city is it ruled?"),
        *("Where is the parliament of this country?", "What city is the capital?", "Which town is its capital?"),
        *("Where would the president live?", "Which city is the most important one politically?"),
    ),
    "language": (
        *(
            "How do they speak over there?",
            "What words do locals use: which language?",
            "Which language do people write in?",
        ),
        *(
            "Which language would help me there?",
            "What do children there learn to speak?",
            "What is spoken in this land?",
        ),
        *("What do the people there speak?", "How do people talk there?", "Which tongue do they speak?"),
        *("What would I hear people speak in the streets?", "Which language should I learn before I go there?"),
        *("In what language are its laws written?", "What do they talk in this nation?"),
        *("What language is used in schools there?", "Which language do the locals speak?"),
    ),
    "currency": (
        *("What would I find in a wallet there?", "Which money works there?", "How is bread paid for there?"),
        *("What money do shops take?", "What are wages paid in?", "Which money does the bank of this land print?"),
        *("What do I pay with there?", "How do people pay?", "Which coins and notes do they use?"),
        *("What money should I bring?", "Into which money do I change my cash?", "What are prices given in?"),
        *("What do the shops there accept?", "Which banknotes are used?", "What do workers get paid in?"),
        *("What does one use to buy things there?", "With what do they pay in this country?"),
    ),
    "subregion": (
        *(
            "Where do I fly to for this country?",
            "Near which part of the world is it?",
            "Where would it be on a globe?",
        ),
        *(
            "Tell me where it is.",
            "Which part of the earth is it in?",
            "Where does this land lie?",
            "What area is it in?",
        ),
        *("Where do I find it on a map?", "Where on earth is that?", "Where is it located?", "Where does it lie?"),
        *("In what part of its continent is it?", "Which corner of the globe is that?", "Whereabouts is that?"),
        *("Where is that place?", "On which continent and where is it?", "Where would I have to travel to get there?"),
        *("Which area of the world is it in?", "Which countries is it near to: what region?"),
    ),
    "meaning": (
        *("Why these colours?", "What did its makers want to say?", "What is told by the colours?"),
        *("What do red, white and the rest stand for?", "Interpret this flag.", "What is symbolised here?"),
        *("What do the stripes mean?", "What is the idea behind this flag?", "Why does it look like this?"),
        *("Why were these colours chosen?", "What are the colours about?", "What does it symbolise?"),
        *("What does each colour stand for?", "How is this flag to be understood?", "What is it supposed to say?"),
        *("What lies behind the design?", "Tell me why the flag has these symbols."),
    ),
    "describe": (
        *("Describe what is shown.", "Tell me what you see.", "What is in the picture?", "Talk about this flag."),
        *("Caption this picture.", "Give all details.", "Say in a few sentences what this flag is."),
        *("Tell me all about this flag.", "What is there to say about this flag?", "Say everything about the flag."),
        *("Describe what you see.", "Describe the image.", "Describe the banner.", "Present this flag to me."),
        *("What do you see here?", "Give me the whole story of this flag.", "Describe it.", "Explain the whole flag."),
        *("Introduce this flag.", "Write about this flag, its owner and its meaning."),
    ),
}
CHINESE_NOUNS = {
    "name": ("国名", "名称", "名字", "国家名称", "国家名字", "國名", "全名", "国家", "哪一国", "名号"),
    "capital": ("首都", "首府", "国都", "都城", "首都城市", "政府所在地", "京城", "首都名", "首都的名字"),
    "language": (
        "语言",
        "官方语言",
        "国语",
        "官方语",
        "通用语言",
        "主要语言",
        "語言",
        "话",
        "官方话",
        "母语",
        "民族语言",
        "使用的语言",
    ),
    "currency": (
        "货币",
        "法定货币",
        "钱",
        "币种",
        "货币单位",
        "官方货币",
        "貨幣",
        "钱币",
        "流通货币",
        "纸币",
        "本国货币",
        "货币名称",
        "通货",
    ),
    "subregion": (
        "地区",
        "所在地区",
        "地理位置",
        "位置",
        "区域",
        "所在区域",
        "地理区域",
        "所处的地方",
        "方位",
        "大洲",
        "哪个洲",
        "世界上的地区",
        "地点",
        "次区域",
    ),
    "meaning": (
        "含义",
        "意义",
        "象征意义",
        "寓意",
        "意思",
        "颜色的含义",
        "图案的含义",
        "颜色的意思",
        "内涵",
        "象征",
        "含意",
        "设计的意思",
    ),
    "describe": ("描述", "介绍", "说明", "简介", "详细描述", "完整介绍", "概述", "描写", "全部情况", "详情"),
}
CHINESE_COUNTRIES = (
    *("这个国家", "该国", "这面旗的国家", "这面国旗所属的国家", "使用这面旗的国家", "图中的国家", "那个国家", "它"),
    *("图里的国家", "这面旗帜代表的国家", "这个地方", "这個國家", "这里"),
)
CHINESE_FLAGS = ("这面旗", "这面国旗", "这面旗帜", "图中的旗帜", "这个旗子", "图里的旗", "該旗", "它")
CHINESE_FRAMES = (
    "{whose}的{noun}是什么?",
    "{whose}的{noun}是什么",
    "请告诉我{whose}的{noun}。",
    "告诉我{whose}的{noun}",
    "{whose}的{noun}是哪个?",
    "说出{whose}的{noun}。",
    "{whose}有什么{noun}?",
    "{whose}的{noun}?",
    "{noun}是什么?",
    "{noun}?",
    "{noun}",
    "请问{whose}的{noun}是什么?",
    "查一下{whose}的{noun}。",
    "给出{whose}的{noun}。",
    "{whose}的{noun}叫什么?",
    "写出{whose}的{noun}。",
    "关于{whose}:{noun}是什么?",
    "请说明{whose}的{noun}。",
    "问题:{whose}的{noun}?",
    "{whose},{noun}?",
    "{noun}:",
    "找出{whose}的{noun}。",
    "{whose}的{noun}怎么说?",
    "帮我找{whose}的{noun}。",
    "看图回答:{whose}的{noun}。",
    "{whose}的{noun}是?",
    "说一下{whose}的{noun}吧。",
    "{whose}用的{noun}是什么呢?",
    "哪个是{whose}的{noun}?",
    "这里要填{whose}的{noun}。",
    "{whose}的{noun}究竟是什么?",
    "有没有{whose}的{noun}?",
    "想问{whose}的{noun}。",
)
CHINESE_SENTENCES = {
    "name": (
        *("这是哪里的旗?", "哪个国家的?", "旗子是谁家的?", "这是哪一国?"),
        *("这是哪个国家的国旗?", "这是哪国的旗?", "这面旗属于哪个国家?", "这面旗代表哪个国家?", "这是什么国家?"),
        *("图里是哪个国家?", "哪个国家用这面旗?", "这是谁的旗帜?", "这是哪个国家或地区?", "这是什么旗?"),
    ),
    "capital": (
        *("哪里是它的首都?", "国都在何处?", "总统住在哪座城市?", "该国的首都设在何处?"),
        *("首都在哪里?", "首都是哪座城市?", "哪个城市是首都?", "首都叫什么名字?", "它的首都在哪?", "哪座城市是首府?"),
        "政府在哪座城市?",
    ),
    "language": (
        *("当地说什么话?", "居民讲什么语言?", "到那里要懂什么语言?", "平时用什么语言?"),
        *("那里的人说什么语言?", "这个国家讲什么话?", "当地人讲哪种语言?", "他们说什么话?", "那里讲什么语言?"),
        *("说哪种语言?", "人们用什么语言交流?", "官方使用哪种语言?"),
    ),
    "currency": (
        *("到那里要带什么钱?", "人们付什么钱?", "工资用什么货币发?", "商店收什么钱?"),
        *("那里用什么钱?", "用什么货币?", "买东西付什么钱?", "当地流通什么货币?", "用哪种货币付款?", "花什么钱?"),
        *("这个国家使用什么货币?", "物价用什么货币计算?"),
    ),
    "subregion": (
        *("它处于世界何处?", "在地球的哪一边?", "该国地处哪里?", "它属于哪个区域?"),
        *("这个国家在哪里?", "在世界的哪个地区?", "位于哪个地区?", "在地图上的什么地方?", "它在世界的哪一部分?"),
        *("这个国家位于哪里?", "在哪个洲的哪一带?", "它在什么地方?"),
    ),
    "meaning": (
        *("每种颜色代表什么?", "设计有什么寓意?", "旗上的图案是什么意思?"),
        *("这面旗是什么意思?", "颜色代表什么?", "图案象征什么?", "为什么用这些颜色?", "国旗的颜色有什么含义?"),
        *("这些颜色是什么意思?", "这面旗象征什么?"),
    ),
    "describe": (
        *("这面旗是什么样的?", "讲一讲这面国旗。", "图中是什么?请描述。"),
        *("描述这面旗。", "介绍一下这面国旗。", "请描述这张图。", "说说这面旗。", "详细介绍这面旗。", "描述一下。"),
        *("请介绍这面旗:属于谁,画了什么,有什么含义。", "讲讲这面旗。"),
    ),
}

# Never trained on. A family is a way of asking; `{noun}` and `{whose}` are filled as above.
KEPT_OUT_FRAMES = {
    "polite": (
        "Would you mind telling me what the {noun} of {whose} is?",
        "I would be grateful if you could say what the {noun} of {whose} is.",
    ),
    "indirect": ("Do you happen to know what the {noun} of {whose} is?", "Any idea what {whose} has as its {noun}?"),
    "need": (
        "I need the {noun} of {whose} for my homework.",
        "My teacher wants to hear the {noun} of {whose} from me.",
    ),
    "quiz": ("Quiz time! The {noun} of {whose} is ...?", "For ten points: what is the {noun} of {whose}?"),
    "form": ("Fill in the blank: {noun} of {whose} = ____", "Complete this entry -- {noun}:"),
    "chat": (
        "hey so i got this picture from a friend, whats the {noun} of {whose} lol",
        "ok next one, {whose}, {noun}?? thx",
    ),
    "teacher": ("Answer as a geography teacher would: what {noun} goes with {whose}?",),
    "doubt": ("I always forget it. Remind me, what was the {noun} of {whose} again?",),
    "search": ("{noun} lookup country flag image", "picture of flag, {noun} wanted"),
    "reason": ("Seeing {whose} here, one wonders about the {noun}. Which is it?",),
}
KEPT_OUT_CHINESE_FRAMES = {
    "Chinese: wish": ("我想知道{whose}的{noun}。", "我很好奇{whose}的{noun}到底是什么。"),
    "Chinese: know": ("你知道{whose}的{noun}是什么吗?", "有人知道{whose}的{noun}吗?"),
    "Chinese: quiz": ("考考你:{whose}的{noun}是……?", "抢答题:说一说{whose}的{noun}!"),
    "Chinese: polite": ("麻烦您帮我看看{whose}的{noun},谢谢。", "能不能帮我查查{whose}的{noun}呢?"),
}
KEPT_OUT_SENTENCES = {
    "outright": UNSEEN,
    "Chinese: outright": {
        "name": ("这旗子是哪一国的啊?", "请问图上的旗帜来自哪个国家?"),
        "capital": ("该国把首都设在哪座城市?", "它的首都究竟是哪里?"),
        "language": ("去那儿旅游要会说哪种语言?", "该国人民平时讲什么语言?"),
        "currency": ("去那儿旅游要换什么货币?", "在该国购物要用哪种钱?"),
        "subregion": ("该国坐落在世界的哪个区域?", "请问它处在哪个地区呢?"),
        "meaning": ("旗上的颜色各自象征着什么呢?", "能解释一下这面旗的寓意吗?"),
        "describe": ("能不能给我描述一下这面旗帜?", "请详细地描述图中的国旗。"),
    },
}
KEPT_OUT = (*KEPT_OUT_FRAMES, *KEPT_OUT_CHINESE_FRAMES, *KEPT_OUT_SENTENCES)

_GREETINGS = (
    *("Please tell me: ", "Look at this flag. ", "Can you tell me? ", "Here is a flag. ", "I wonder: ", "Hello! "),
    *("Hi, ", "Question: ", "One more: ", "Excuse me, ", "So, ", "Good morning! ", "I have a question. "),
)
# Words that tell nothing about what is asked: a question is found among them.
_CHATTER = (
    *("well", "today", "we", "saw", "it", "on", "a", "ship", "and", "now", "my", "sister", "asks", "me", "because"),
    *("she", "likes", "old", "pictures", "from", "the", "internet", "just", "quick", "one", "thanks", "in", "advance"),
    *("maybe", "you", "can", "help", "us", "out", "here", "there", "is", "this", "thing", "that", "was", "sent", "by"),
    *("somebody", "at", "work", "yesterday", "evening", "for", "fun", "no", "idea", "really", "sorry", "if", "stupid"),
    *("answer", "short", "only", "please", "be", "brief", "then", "next", "number", "two", "three", "look", "closely"),
    *(
        "class",
        "exam",
        "book",
        "game",
        "test",
        "write",
        "say",
        "want",
        "would",
        "could",
        "should",
        "like",
        "to",
        "with",
    ),
    *("he", "they", "so", "but", "also", "again", "always", "never", "often", "some", "any", "all", "first", "last"),
    *("good", "great", "dear", "assistant", "bot", "hm", "ok", "uh", "pls", "btw", "image", "photo", "attached"),
    # Said of descriptions and of lists, where one thing is asked for by its name beside them.
    *("picture", "drawing", "full", "complete", "whole", "long", "detailed", "details", "overall", "everything"),
    *("entry", "list", "sheet", "card", "table", "row", "column", "file", "record", "line", "item", "page", "label"),
    *("below", "above", "missing", "given", "required", "searching", "web"),
)
_CHINESE_CHATTER = (
    *(
        "你好",
        "今天",
        "我们",
        "老师",
        "朋友",
        "看到",
        "图片",
        "请",
        "快点",
        "谢谢",
        "我",
        "想",
        "一下",
        "能",
        "不能",
        "吗",
    ),
    *(
        "呢",
        "吧",
        "啊",
        "刚才",
        "网上",
        "有人",
        "发来",
        "这张",
        "图",
        "帮忙",
        "看看",
        "回答",
        "题目",
        "第一",
        "第二",
        "其实",
    ),
    *("真的", "不懂", "很", "好", "大家", "听说", "您", "给", "问题", "如下", "简单", "说"),
)
_JOINTS = (" ", ", ", ". ", ": ", " - ", "! ", "; ", "... ")
_CHINESE_JOINTS = ("", ",", "。", ":", "!", ",", "、")
_TELLING = {letter for nouns in CHINESE_NOUNS.values() for noun in nouns for letter in noun}
# Letters that often stand beside what is asked for, and in no noun for it.
_CHINESE_LETTERS = sorted(
    {
        *"一是在不了有和人这中大上个他以我到时要就会可也你对生能而子那得着下自年过后作里道然事成多么去学如都同现当没动面起看天"
        "分还进好小些样心她前开但因只从想实日者无力它与长把机十第此已使情明又关点正外将两间由问很最重物手应向头体相见被利二等"
    }
    - _TELLING
)
# Of Unicode 1.1: what is asked for has to be found among letters never seen, too.
_IDEOGRAPHS = [chr(code) for code in range(0x4E00, 0x9FA6)]
# Letters that share two of their three bytes with one that tells what is asked for, as the particle that ends a
# question (吗) does with that of "name" (名): a reader whose tokenizer saw bytes alone took the one for the other.
_LOOKALIKES = sorted({chr(ord(one) & ~63 | last) for one in _TELLING for last in range(64)} - _TELLING)
_CHINESE_GREETINGS = ("你好,", "请问,", "看这面旗。", "问一下:", "您好!")


def ask_anyhow(kind: str, rng: random.Random) -> str:
    """One question to train on, of any wording but those of `KEPT_OUT`.

    Args:
        kind (`str`): One of `flags.questions.KINDS`.
        rng (`random.Random`): The only source of chance.

    Example:

    ```python
    >>> ask_anyhow("capital", random.Random(5))
    'Which city is the most important one politically?'

    ```
    """
    is_chinese = rng.random() < CHINESE_SHARE
    if is_chinese:
        framed = rng.random() < FRAMED_SHARE
        question = _framed(kind, CHINESE_FRAMES, rng, True) if framed else rng.choice(CHINESE_SENTENCES[kind])
        question = rng.choice(_CHINESE_GREETINGS) + question if rng.random() < 0.08 else question
    elif (manner := rng.random()) < OFFICIAL_SHARE:
        question = OFFICIAL[kind]
    elif manner < OFFICIAL_SHARE + (1 - OFFICIAL_SHARE) * FRAMED_SHARE:
        question = _spoilt(_framed(kind, FRAMES, rng), rng)
    else:
        question = _spoilt(rng.choice((*PARAPHRASES[kind], *SENTENCES[kind])), rng)
    return _among_chatter(question, rng, is_chinese) if rng.random() < CHATTER_SHARE else question


def ask_in_noise(kind: str, rng: random.Random, particle_share: float = 0.0) -> str:
    """As `ask_anyhow`, but a quarter of the framed questions have no frame, and idle words are any.

    What is asked for then has to be found among words that no frame explains, half of them such as nobody ever said.
    Of the Chinese questions `particle_share` end in a letter that tells nothing, as in a particle.

    Example:

    ```python
    >>> ask_in_noise("currency", random.Random(6))
    'Tu one mudopa! What is the monetary unit of the pictured country?'

    ```
    """
    is_chinese = rng.random() < CHINESE_SHARE
    if not is_chinese and rng.random() < OFFICIAL_SHARE:
        question = OFFICIAL[kind]
    elif rng.random() < FRAMED_SHARE:
        is_strewn = rng.random() < STREWN_SHARE
        frames = CHINESE_FRAMES if is_chinese else FRAMES
        question = _strewn(kind, rng, is_chinese) if is_strewn else _framed(kind, frames, rng, is_chinese)
    else:
        sentences = CHINESE_SENTENCES[kind] if is_chinese else (*PARAPHRASES[kind], *SENTENCES[kind])
        question = rng.choice(sentences)
    if is_chinese:
        question = rng.choice(_CHINESE_GREETINGS) + question if rng.random() < 0.08 else question
        question = _with_particle(question, rng) if rng.random() < particle_share else question
    elif question != OFFICIAL[kind]:
        question = _spoilt(question, rng)
    return _among_chatter(question, rng, is_chinese, MADE_UP_SHARE) if rng.random() < NOISE_SHARE else question


def ask_kept_out(family: str, kind: str, rng: random.Random) -> str:
    """One question of a family that nothing was trained on.

    Example:

    ```python
    >>> ask_kept_out("quiz", "currency", random.Random(0))
    'For ten points: what is the local money of the country with this flag?'

    ```
    """
    if family in KEPT_OUT_SENTENCES:
        return rng.choice(KEPT_OUT_SENTENCES[family][kind])
    is_chinese = family in KEPT_OUT_CHINESE_FRAMES
    return _framed(kind, (KEPT_OUT_CHINESE_FRAMES if is_chinese else KEPT_OUT_FRAMES)[family], rng, is_chinese)


def trained_wordings() -> list[str]:
    """Every phrase that questions to train on are made of, idle words apart: what a tokenizer should know.

    Example:

    ```python
    >>> "legal tender" in trained_wordings(), "首都" in trained_wordings()
    (True, True)

    ```
    """
    by_kind = (NOUNS, SENTENCES, PARAPHRASES, CHINESE_NOUNS, CHINESE_SENTENCES)
    phrases = [phrase for wordings in by_kind for of_kind in wordings.values() for phrase in of_kind]
    phrases += [phrase[:1].upper() + phrase[1:] for phrase in phrases]  # as it stands at the beginning
    owners = (*COUNTRIES, *FLAGS, *KEYWORDS, *CHINESE_COUNTRIES, *CHINESE_FLAGS)
    frames = [frame.format(noun="", whose="") for frame in (*FRAMES, *CHINESE_FRAMES)]
    return [*OFFICIAL.values(), *phrases, *owners, *frames, *_GREETINGS, *_CHINESE_GREETINGS]


def _framed(kind: str, frames: tuple[str, ...], rng: random.Random, is_chinese: bool = False) -> str:
    nouns, whose = _words_for(kind, is_chinese)
    question = rng.choice(frames).format(noun=rng.choice(nouns), whose=rng.choice(whose))
    return question[:1].upper() + question[1:] if rng.random() < 0.8 else question


def _words_for(kind: str, is_chinese: bool) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Nouns for what is asked, and words for whose it is."""
    about_flag = kind in ("meaning", "describe")
    if is_chinese:
        return CHINESE_NOUNS[kind], CHINESE_FLAGS if about_flag else CHINESE_COUNTRIES
    return NOUNS[kind], FLAGS if about_flag else COUNTRIES


def _strewn(kind: str, rng: random.Random, is_chinese: bool) -> str:
    """No frame at all: what is asked for, mostly whose it is, in either order, among idle words or alone."""
    blank, (nouns, whose) = "" if is_chinese else " ", _words_for(kind, is_chinese)
    noun, owner = rng.choice(nouns), rng.choice(whose if is_chinese or rng.random() < 0.5 else KEYWORDS)
    parts = [noun, owner][:: rng.choice((1, 1, -1))] if rng.random() < 0.7 else [noun]
    words = [
        _idle_words(rng, is_chinese, 3, MADE_UP_SHARE) if rng.random() < 0.5 else "" for _ in range(len(parts) + 1)
    ]
    laid = [words[0], *(one for pair in zip(parts, words[1:], strict=True) for one in pair)]
    asked = blank.join(filter(None, laid)) + rng.choice(("", "?", "?", ".", "!", ":"))
    return asked[:1].upper() + asked[1:] if rng.random() < 0.5 else asked


def _idle_words(rng: random.Random, is_chinese: bool, most: int, made_up: float) -> str:
    """Words that tell nothing, so large a share of them such as nobody ever said."""
    number, words = rng.randint(1, most), _CHINESE_CHATTER if is_chinese else _CHATTER
    if not made_up:
        chosen = rng.choices(words, k=number)
    else:
        chosen = [_made_up(rng, is_chinese) if rng.random() < made_up else rng.choice(words) for _ in range(number)]
    return ("" if is_chinese else " ").join(chosen)


def _with_particle(question: str, rng: random.Random) -> str:
    """A letter that tells nothing before the mark at the end, where Chinese has its particles (吗, 呢, 吧)."""
    asked = question.rstrip("?。!:.")
    return asked + _made_up(rng, is_chinese=True) + (question[len(asked) :] or rng.choice("?。"))


def _made_up(rng: random.Random, is_chinese: bool) -> str:
    if is_chinese:
        return rng.choice(rng.choice((_CHINESE_LETTERS, _LOOKALIKES, _IDEOGRAPHS)))
    syllables = [rng.choice("bcdfghklmnprstvwz") + rng.choice("aeiou") for _ in range(rng.randint(1, 3))]
    return "".join(syllables)


def _among_chatter(question: str, rng: random.Random, is_chinese: bool, made_up: float = 0.0) -> str:
    """The question with words before it, behind it or both that tell nothing."""
    joints = _CHINESE_JOINTS if is_chinese else _JOINTS
    sides = rng.choice(((1, 0), (0, 1), (1, 1)))
    before, behind = (_idle_words(rng, is_chinese, 6, made_up) if side else "" for side in sides)
    before = before[:1].upper() + before[1:] + rng.choice(joints) if before else ""
    return f"{before}{question}{rng.choice(joints)}{behind}" if behind else before + question


def _spoilt(question: str, rng: random.Random) -> str:
    """Now and then as people type: in lower case or capitals, without a mark at the end, with a slip or a greeting."""
    manner = rng.random()
    if manner < 0.08:
        return question.lower()
    if manner < 0.11:
        return question.upper()
    if manner < 0.19:
        return question.rstrip("?.")
    if manner < 0.25:
        return rng.choice(_GREETINGS) + question
    if manner < 0.33:
        place = rng.randrange(len(question) - 1)  # two letters change places, or one is lost
        swapped = question[place + 1] + question[place] if rng.random() < 0.5 else question[place + 1]
        return question[:place] + swapped + question[place + 2 :]
    return question
