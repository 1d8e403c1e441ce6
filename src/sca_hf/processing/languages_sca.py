"""Tags of languages (BCP 47): one spelling for each, and which of those that are known one means."""

import re
from collections.abc import Sequence
from typing import Any


# ISO 639-1 with the codes of ISO 639-2 and 639-3 that mean the same; BCP 47 wants the shorter.
_CODES = """
aa:aar ab:abk ae:ave af:afr ak:aka am:amh an:arg ar:ara as:asm av:ava ay:aym az:aze ba:bak be:bel bg:bul bi:bis bm:bam
bn:ben bo:bod,tib br:bre bs:bos ca:cat ce:che ch:cha co:cos cr:cre cs:ces,cze cu:chu cv:chv cy:cym,wel da:dan
de:deu,ger dv:div dz:dzo ee:ewe el:ell,gre en:eng eo:epo es:spa et:est eu:eus,baq fa:fas,per ff:ful fi:fin fj:fij
fo:fao fr:fra,fre fy:fry ga:gle gd:gla gl:glg gn:grn gu:guj gv:glv ha:hau he:heb hi:hin ho:hmo hr:hrv ht:hat hu:hun
hy:hye,arm hz:her ia:ina id:ind ie:ile ig:ibo ii:iii ik:ipk io:ido is:isl,ice it:ita iu:iku ja:jpn jv:jav ka:kat,geo
kg:kon ki:kik kj:kua kk:kaz kl:kal km:khm kn:kan ko:kor kr:kau ks:kas ku:kur kv:kom kw:cor ky:kir la:lat lb:ltz lg:lug
li:lim ln:lin lo:lao lt:lit lu:lub lv:lav mg:mlg mh:mah mi:mri,mao mk:mkd,mac ml:mal mn:mon mr:mar ms:msa,may mt:mlt
my:mya,bur na:nau nb:nob nd:nde ne:nep ng:ndo nl:nld,dut nn:nno no:nor nr:nbl nv:nav ny:nya oc:oci oj:oji om:orm or:ori
os:oss pa:pan pi:pli pl:pol ps:pus pt:por qu:que rm:roh rn:run ro:ron,rum ru:rus rw:kin sa:san sc:srd sd:snd se:sme
sg:sag sh:hbs si:sin sk:slk,slo sl:slv sm:smo sn:sna so:som sq:sqi,alb sr:srp ss:ssw st:sot su:sun sv:swe sw:swa ta:tam
te:tel tg:tgk th:tha ti:tir tk:tuk tl:tgl tn:tsn to:ton tr:tur ts:tso tt:tat tw:twi ty:tah ug:uig uk:ukr ur:urd uz:uzb
ve:ven vi:vie vo:vol wa:wln wo:wol xh:xho yi:yid yo:yor za:zha zh:zho,chi zu:zul
"""
_PAIRS = [entry.split(":") for entry in _CODES.split()]
_SHORTER = {longer: short for short, many in _PAIRS for longer in many.split(",")} | {
    "iw": "he",
    "in": "id",
    "ji": "yi",
}
_SHORT = {short for short, _ in _PAIRS}
_TAG = re.compile(
    r"(?P<language>[a-z]{2,3})(?:-(?P<script>[a-z]{4}))?(?:-(?P<region>[a-z]{2}|\d{3}))?"
    r"(?P<variants>(?:-(?:[a-z\d]{5,8}|\d[a-z\d]{3}))*)(?P<rest>(?:-[a-wyz\d](?:-[a-z\d]{2,8})+)*(?:-x(?:-[a-z\d]{1,8})+)?)"
)


def language_tag(tag: Any) -> str:
    """Return the one spelling of a language tag: `PT_br` becomes `pt-BR`, `zh-hans` `zh-Hans`, `deu` `de`.

    Raises:
        ValueError: it is not a tag of BCP 47, or its two letters are not the code of a language.
    """
    found = _TAG.fullmatch(tag.strip().replace("_", "-").lower()) if isinstance(tag, str) else None
    language = _SHORTER.get(found["language"], found["language"]) if found else ""
    if found is None or (len(language) == 2 and language not in _SHORT):
        raise ValueError(f"language is {tag!r:.60}, expected a tag of BCP 47 such as en, de, zh-Hans or pt-BR.")
    script, region = (found["script"] or "").title(), (found["region"] or "").upper()
    return "-".join(part for part in (language, script, region) if part) + found["variants"] + found["rest"]


def find_language(asked: Any, known: Sequence[str]) -> str | None:
    """Return which of the `known` tags is meant; None where none is, or several are.

    The tag itself, else what is left when its end is cut (`de` for `de-AT`), else the only one that says more (`pt-BR`
    for `pt`). A script that is asked for is never given up: `zh-Hant` is not `zh`.
    """
    tag = language_tag(asked)
    parts = tag.split("-")
    fewest = 2 if len(parts) > 1 and len(parts[1]) == 4 and parts[1].isalpha() else 1
    for count in range(len(parts), fewest - 1, -1):
        if (shorter := "-".join(parts[:count])) in known:
            return shorter
    longer = [one for one in known if one.startswith(f"{tag}-")]
    return longer[0] if len(longer) == 1 else None
