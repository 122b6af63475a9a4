"""Personal data in rows: what is found, what is not, and what stands in its place."""

import gzip
import json
import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

from align.curation import personal, pii
from align.curation.pii import Pii

DATA = os.environ.get("ALIGN_DATA")
needs_data = pytest.mark.skipif(DATA is None, reason="ALIGN_DATA is not set")

FOUND = {
    "email": [
        "jane.doe@mail.co.uk",
        "J_D+lists@uni-köln.de",
        "jane [at] mail [dot] org",
        "jane(at)mail.org",
        "иван@почта.рф",
    ],
    "phone": [
        "+49 30 901820",
        "+1 (415) 867-5309",
        "+14158675309",
        "(212) 664-7665",
        "212-664-7665",
        "212.664.7665",
        "06 12 34 56 78",
        "020 7946 0958",
        "0171/2345678",
        "+91 98765 43210",
        "0044 20 7946 0958",
    ],
    "ip": ["81.2.69.142", "2a00:1450:4001:81b::200e", "2001:4860:4860:0:0:0:0:8888"],
    "iban": [  # examples of the registry
        "DE89370400440532013000",
        "GB29 NWBK 6016 1331 9268 19",
        "FR14 2004 1010 0505 0001 3M02 606",
        "NO9386011117947",
        "MT84MALT011000012345MTLCAST001S",
        "de89370400440532013000",
        "DE89-3704-0044-0532-0130-00",
        "HN88CABF00000000000250005469",
        "NI45BAPR00000013000003558124",
    ],
    "card": [  # issuers' test numbers
        "4111 1111 1111 1111",
        "5555-5555-5555-4444",
        "2223003122003222",
        "3782 822463 10005",
        "6011111111111117",
        "30569309025904",
    ],
    "key": [
        "AKIAIOSFODNN7Q2LXBRT",
        "ghp_16C7e42F292c6912E7710c838347Ae178B4a",
        "xoxb-17653672481-19874698323",
        "hf_" + "aB3dE" * 7,
        "sk-proj-4f9aKq2LmN8sT1vX7wZ0",
        "SG.a1B2c3D4e5F6g7H8i9J0ab." + "a1B2c3D4e5F6" * 3 + "a1B2c3D",
        "ya29.a0AfH6SMBa1B2c3D4e5F6g7H8",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.dozjgNryP4J3jVmNHl0w5N",
        "-----BEGIN RSA PRIVATE KEY-----\nMIIB\nOQIB\n-----END RSA PRIVATE KEY-----",
    ],
}

LEFT = {
    "email": [
        "write to you@example.com",
        "git@github.com:owner/name.git",
        "@property",
        "icon@2x.png",
        "ssh user@host",
        "pack@1.2.3",
    ],
    "phone": [
        "in 1914-1918 and 1939-1945",
        "call 1-800-273-8255",
        "2020-09-23 12:30",
        "978-3-16-148410-0",
        "12345678901",
        "1,234,567,890",
        "+100 000 000",
        "5+12345678=12345683",
        "3.14159265358979",
        "$212.664.7665",
        "10 20 30 40 50 60 70",
        "version 212.664.7665.1",
        "01-02-2020 12:30:45",
        "the sum 0110 1100 0011 in bits",
        "0000 0000 0000 0000",
        "DE89 3704 0044 0532 0130 01",
        "05 10 15 20 25",
        "Lotto: 07 12 23 34 45",
        "matrix 020 300 400",
        "050 100 150",
        "the ratio 0123/45678",
        "x = +123 456 789",
        "+1 234 567 890",
        "add +10 200 3000 500",
        "mobile 2019-2020-2021",
        "cell 1000000",
        "phone: 10800-2500",
        "phone can hold [[10801-2502]]=<<10801-2502=8299>>8299",
        "phone costs 2 * 6647665 or 6647665 * 2",
        "Wang et al., Cell 181 (2020) 223-227",
        "Cell 10.1016/j.cell.2020.01.001",
        "The phone, released 2007-06-29, was",
        "phone: 12/10/2020",
        "phone (2021-03-15)",
        "fax is 12.10.2020",
        "Phone: (2020) 181 223",
        "Cell voltage: 3.7 4.2 3.7 4.2",
        "cell: 3.7 4.2 3.7 4.2",
        "mobile/desktop ratio 0.1234567",
        "phone: 0.1234567",
        "Excel cell 1 2 3 4 5 6 7 8",
        "phone screen 1179 2556 pixels",
        "phone (1080/2400) pixels",
        "mobile payments 12 345 678",
        "0020 100 300 500",
    ],
    "ip": [
        "192.168.1.1 and 127.0.0.1",
        "version 81.2.69.142",
        "v81.2.69.142",
        "version is 5.6.7.8",
        "Python 3.11.2.1",
        "Chrome/120.0.0.1",
        "81.2.69.142.7",
        "300.2.69.142",
        "std::vector<int> a[1::2]",
        "at 12:30:45",
        "2001:db8::1",
        "fe80::1",
        "Chrome/81.0.4389.82-x",
        "opencv-python==4.8.1.78",
        "opencv >= 4.5.5.64",
        "OpenCV 4.5.5.64",
        '"version": "4.8.1.78"',
        "<Version>4.8.1.78</Version>",
        'AssemblyVersion("1.2.3.40")',
        "Figure 3.2.1.40",
        "see 4.2.1.3 above, OID 1.3.6.1",
    ],
    "iban": [
        "DE89370400440532013001",
        "DE8937040044053201300",
        "XX89370400440532013000",
        "AB12 CD34",
        "be20 the words have",
    ],
    "card": [
        "4111 1111 1111 1112",
        "9111111111111111",
        "41 11 11 11 11 11 11 11",
        "4111111111111111111111",
    ],
    "key": [
        "key: my_secret_password_value",
        "token = tokenizer.from_pretrained",
        "sk-learn-contrib-extensions",
        "secret: version_2_of_the_plan_final",
        "hf_hub_download(repo_id=repo)",
        "-----BEGIN PUBLIC KEY-----",
    ],
}


def scrubbed(text: str, kinds: list[Any] | None = None) -> tuple[str, Counter[str]]:
    rule = Pii(kinds=kinds) if kinds else Pii()
    row, counts = rule.change({"id": "a", "text": text})
    return row["text"], counts


@pytest.mark.parametrize(("kind", "spelled"), [(k, s) for k, many in FOUND.items() for s in many])
def test_personal_data_gives_way_to_its_kind(kind: str, spelled: str) -> None:
    text, counts = scrubbed(f"It is {spelled}, as I said ({spelled}).")
    name = f"<{kind.upper()}_1>"
    assert text == f"It is {name}, as I said ({name})."
    assert counts == {kind: 2}


@pytest.mark.parametrize(("kind", "text"), [(k, t) for k, many in LEFT.items() for t in many])
def test_what_only_looks_like_it_stays(kind: str, text: str) -> None:
    assert scrubbed(f"So {text} it is.", [kind])[0] == f"So {text} it is."


@pytest.mark.parametrize(
    ("text", "becomes"),
    [
        ("请联系foo.bar@gmail.com谢谢", "请联系<EMAIL_1>谢谢"),
        ("お問い合わせはinfo@toyota.co.jpまで", "お問い合わせは<EMAIL_1>まで"),
        ("ติดต่อfoo@gmail.comได้", "ติดต่อ<EMAIL_1>ได้"),
        ("电话+86 138 1234 5678谢谢", "电话<PHONE_1>谢谢"),
        ("我的phone:6647665谢谢", "我的phone:<PHONE_1>谢谢"),
        ("卡号4111111111111111。", "卡号<CARD_1>。"),
        ("账号DE89370400440532013000谢谢", "账号<IBAN_1>谢谢"),
        ("地址81.2.69.142和2a00:1450:4001:81b::200e谢谢", "地址<IP_1>和<IP_2>谢谢"),
        ("密钥sk-proj-4f9aKq2LmN8sT1vX7wZ0谢谢", "密钥<KEY_1>谢谢"),
        ("ip:81.2.69.142, IP:8.8.4.42 port 80", "ip:<IP_1>, IP:<IP_2> port 80"),
        ("server 8.8.8.84 or ::ffff:8.8.8.84", "server <IP_1> or ::ffff:<IP_1>"),
        ("source:2a00:1450:4001:81b::200e", "source:<IP_1>"),
        ("fe80:2a00:1450:4001:81b::200e", "fe80:2a00:1450:4001:81b::200e"),
        ("Jo,jo@mail.org,212-664-7665,NY", "Jo,<EMAIL_1>,<PHONE_1>,NY"),
        ("7,212-664-7665,30", "7,<PHONE_1>,30"),
        ("Jo,4111111111111111,12/27", "Jo,<CARD_1>,12/27"),
        ("0,4111111111111111", "0,4111111111111111"),
        ("_jo@mail.org_ __jo@mail.org__ jo@mail.org-", "_<EMAIL_1>_ __<EMAIL_1>__ <EMAIL_1>-"),
        ("**212-664-7665**, **phone:** 6647665", "**<PHONE_1>**, **phone:** <PHONE_2>"),
        ("phone (555-3476) and fax (555-2428)", "phone (<PHONE_1>) and fax (<PHONE_2>)"),
        ("tel: 030 901820; Tel.: +43/1/58858", "tel: <PHONE_1>; Tel.: <PHONE_2>"),
        ("Fax/Phone: 6647665, cell no. 664 7666", "Fax/Phone: <PHONE_1>, cell no. <PHONE_2>"),
        ("https://jo:a7secret@host.com/", "https://<KEY_1>@host.com/"),
    ],
)
def test_what_stands_beside_hides_nothing(text: str, becomes: str) -> None:
    """Writing without blanks, rows of CSV, Markdown, names with a colon, addresses of the web."""
    assert scrubbed(text)[0] == becomes


def test_every_kind_has_a_finder() -> None:
    assert set(get_args(pii.Kind)) == set(pii._FINDERS) == set(FOUND) == set(LEFT)


def test_what_is_assigned_to_a_key_goes_and_its_name_stays() -> None:
    text, _ = scrubbed('API_KEY = "9f86d081884c7d659a2feaa0c55ad015"')
    assert text == 'API_KEY = "<KEY_1>"'
    text, _ = scrubbed(
        '{"password": "Tr0ub4dor&3xyzQ9w8", "Authorization": "Bearer a1B2.c3D4e5F6g7H8"}'
    )
    assert text == '{"password": "<KEY_1>", "Authorization": "Bearer <KEY_2>"}'


def test_what_is_found_in_two_ways_is_one_and_nothing_of_it_is_left() -> None:
    pem, aws, token = FOUND["key"][-1], FOUND["key"][0], FOUND["key"][1]
    assert scrubbed(f"{pem}\n{aws}\ntoken: {token}; key={aws}")[0] == (
        "<KEY_1>\n<KEY_2>\ntoken: <KEY_3>; key=<KEY_2>"
    )
    assert scrubbed(f"secret={token}/9a8b7c6d5e4f")[0] == "secret=<KEY_1>"


def test_one_changed_digit_makes_no_card_and_no_iban() -> None:
    """Luhn's sum and the remainder by 97 find every single wrong digit."""
    for kind, number in (("card", "4111111111111111"), ("iban", "DE89370400440532013000")):
        for place in range(4, len(number)):
            for digit in set("0123456789") - {number[place]}:
                wrong = number[:place] + digit + number[place + 1 :]
                assert scrubbed(wrong, [kind])[0] == wrong


def test_what_stands_alone_is_found_whatever_little_it_has() -> None:
    """With no other digits in the text, and of the fewest that its kind can have."""
    assert scrubbed("1.1.1.10")[0] == "<IP_1>"
    assert scrubbed("MT84MALT011000012345MTLCAST001S")[0] == "<IBAN_1>"
    assert scrubbed("DE89370400440532013000 de89370400440532013000")[0] == "<IBAN_1> <IBAN_1>"
    assert len(personal._SPELLED) == 88  # countries


def test_one_in_ten_numbers_has_the_right_check_digit() -> None:
    right = [f"{number:016}" for number in range(4 * 10**15, 4 * 10**15 + 1000)]
    assert sum(map(personal.luhn, right)) == 100


def test_numbers_go_by_first_appearance_in_the_row_and_by_nothing_else() -> None:
    row = {
        "id": "a",
        "prompt": [{"role": "user", "content": "Write to b@mail.org or a@mail.org."}],
        "chosen": [{"role": "assistant", "content": "A@mail.org it is: +49 30 901820."}],
        "rejected": [{"role": "assistant", "content": "No: c@mail.org, +49 (30) 901820."}],
    }
    changed, counts = Pii().change(row)
    said = [changed[key][0]["content"] for key in ("prompt", "chosen", "rejected")]
    assert said == [
        "Write to <EMAIL_1> or <EMAIL_2>.",
        "<EMAIL_2> it is: <PHONE_1>.",
        "No: <EMAIL_3>, <PHONE_1>.",
    ]
    assert counts == {"email": 4, "phone": 2}
    assert Pii().change(changed) == (changed, {})
    assert row["chosen"][0]["content"].startswith("A@mail")


def test_a_placeholder_that_stands_there_already_is_somebody_else() -> None:
    row = {
        "id": "a",
        "prompt": [{"role": "user", "content": "b@mail.org, a@mail.org, B@mail.org"}],
        "chosen": [{"role": "assistant", "content": "<EMAIL_3> and <IP_7>, not +49 30 901820"}],
    }
    changed, _ = Pii().change(row)
    assert changed["prompt"][0]["content"] == "<EMAIL_4>, <EMAIL_5>, <EMAIL_4>"
    assert changed["chosen"][0]["content"] == "<EMAIL_3> and <IP_7>, not <PHONE_1>"


def test_every_text_of_a_row_is_changed_and_one_person_has_one_name() -> None:
    """Columns beside, tools, names of who speaks: but not the row's own name and its source's."""
    call = {"function": {"name": "send", "arguments": '{"to": "\\na@mail.org"}'}}
    row = {
        "id": "a@mail.org",
        "source": "b@mail.org",
        "columns": {"answer": "A@mail.org", "meta": {"author": ["c@mail.org", 3, None]}},
        "prompt": [
            {"role": "user", "name": "a@mail.org", "content": '{"to":  "b@mail.org"}'},
            {"role": "assistant", "content": None, "tool_calls": [call]},
        ],
        "tools": [{"name": "send", "description": "To b@mail.org", "parameters": {}}],
        "tests": "[\"assert f('\\na@mail.org')\"]",
    }
    assert Pii().change(row)[0] == {
        "id": "a@mail.org",
        "source": "b@mail.org",
        "columns": {"answer": "<EMAIL_1>", "meta": {"author": ["<EMAIL_3>", 3, None]}},
        "prompt": [
            {"role": "user", "name": "<EMAIL_1>", "content": '{"to":  "<EMAIL_2>"}'},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {"function": {"name": "send", "arguments": '{"to": "\\n<EMAIL_1>"}'}}
                ],
            },
        ],
        "tools": [{"name": "send", "description": "To <EMAIL_2>", "parameters": {}}],
        "tests": "[\"assert f('\\n<EMAIL_1>')\"]",
    }


def test_json_beside_is_read_as_what_it_says_and_stays_as_it_is_written() -> None:
    written = (
        r' {"a@mail.org": 1e5, "a": 1, "a": '
        r'["Call me:\n%s", "\u00e9: \"%s\"", "{\"b\": \"\\n%s\"}"]}'
    )
    phones = ("212-555-0187", "212-555-0188", "212-555-0187")
    row, counts = Pii().change({"id": "a", "beside": written % phones})
    assert counts == {"phone": 3}
    names = ("<PHONE_1>", "<PHONE_2>", "<PHONE_1>")
    assert row["beside"] == (written % names).replace(r"\u00e9", "é")
    row, _ = Pii().change({"id": "a", "text": "a@b.io", "beside": r'["\u003cEMAIL_1>"]'})
    assert row["text"] == "<EMAIL_2>"


def test_what_is_too_deep_or_too_long_for_json_is_a_text() -> None:
    for text in ("[" * 10**5 + "a@mail.org" + "]" * 10**5, '[1%s, "a@mail.org"]' % ("0" * 5000)):
        assert Pii().change({"id": "a", "beside": text})[1] == {"email": 1}


def test_a_row_without_any_is_the_same_object() -> None:
    row = {"id": "a", "text": "Nothing in 2024, at 3.5 % or for $1,200."}
    assert Pii().change(row)[0] is row


def test_what_is_called_a_number_is_one_beside_others_that_look_like_it() -> None:
    text = "Call 212-664-7665, or my mobile: 6647665. Model 6647665, cell (whatsapp) is 555 0199 12"
    assert scrubbed(text)[0] == (
        "Call <PHONE_1>, or my mobile: <PHONE_2>. Model 6647665, cell (whatsapp) is <PHONE_3>"
    )


def test_only_the_kinds_that_are_asked_for_are_looked_for() -> None:
    text = "a@mail.org, +49 30 901820"
    assert scrubbed(text, ["phone"])[0] == "a@mail.org, <PHONE_1>"


@pytest.mark.parametrize(
    "piece",
    [
        *("1", "a", "1.", "1 ", "a@", "a@b.", "::", "2001:", "A1 ", "DE89 ", "key='a1", "(at)"),
        *("a_", "a@b._", "ж@ж.", "a1-", "06 ", "phone **", "://a:", "<EMAIL_1> "),
        *("phone ", "+1 ", "(212) ", "sk-", "eyJ-", "-----BEGIN PRIVATE KEY-----"),
        *("password='", "bearer a", "phone no ", "SG.", "0011 ", 'version"', "=", " "),
    ],
)
def test_no_pattern_takes_time_in_the_square_of_the_length(piece: str) -> None:
    """Of four times the length a finder that looks to the end from every place takes sixteen."""

    def seconds(pieces: int) -> float:
        text = f"phone 12345678901234 {piece * pieces} @ (at) :: = bearer"
        begun = time.process_time()
        scrubbed(text)
        return time.process_time() - begun

    assert min(seconds(8_000) for _ in range(2)) < 9 * min(seconds(2_000) for _ in range(3)) + 0.02


def _texts(data: Path) -> Iterator[str]:
    with gzip.open(data / "hh_rlhf_harmless_test/harmless-base.test.jsonl.gz", "rt") as lines:
        for line in lines:
            yield json.loads(line)["chosen"]
    for name in ("gsm8k/train", "gsm8k/test"):
        for line in (data / f"{name}.jsonl").read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            yield row["question"] + "\n" + row["answer"]


@needs_data
def test_real_dialogs_have_some_and_problems_full_of_numbers_have_none() -> None:
    """Each of the finds in these dialogs was looked at, and is what it is taken for."""
    assert DATA is not None
    finds: Counter[str] = Counter()
    for text in _texts(Path(DATA)):
        finds += scrubbed(text)[1]
    assert finds == {"phone": 12, "email": 5}


def test_a_bracket_belongs_to_the_number_and_many_numbers_take_no_time() -> None:
    def scrubbed(text: str) -> str:
        return str(Pii().change({"id": "1", "text": text})[0]["text"])

    assert scrubbed("phone (555) 123-4567") == "phone <PHONE_1>"
    many = scrubbed(" ".join(f"a{i}@b{i}.com" for i in range(50_000)))  # minutes if quadratic
    assert many.endswith("<EMAIL_50000>")
