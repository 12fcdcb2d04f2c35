//! Messages that are the same error, and messages that are not. The corpus is in `tests/errors/`.

use super::*;
use crate::domain::RunError;

const CORPUS: &str = include_str!("../../../tests/errors/corpus.txt");
const CODES: &str = include_str!("../../../tests/errors/codes.txt");
const COUNTS: &str = include_str!("../../../tests/errors/counts.txt");

fn of_message(message: &str) -> String {
    of(&RunError { message: message.to_owned(), ..RunError::default() })
}

/// Every two messages of the corpus: whether they are put together, and whether they should be.
#[test]
fn the_corpus_is_grouped_as_people_would_group_it() {
    let mut group = 0;
    let mut all: Vec<(usize, String, String)> = Vec::new();
    for line in CORPUS.lines().skip(1).filter(|line| !line.is_empty()) {
        if line.starts_with("# ") {
            group += 1;
            continue;
        }
        let message = line.replace("\\n", "\n").replace("\\t", "\t");
        all.push((group, of_message(&message), message));
    }
    let (mut together, mut wrongly, mut apart) = (0, Vec::new(), Vec::new());
    for (index, one) in all.iter().enumerate() {
        for other in &all[..index] {
            match (one.0 == other.0, one.1 == other.1) {
                (true, true) => together += 1,
                (false, true) => wrongly.push((&one.2, &other.2)),
                (true, false) => apart.push((&one.2, &other.2)),
                (false, false) => {}
            }
        }
    }
    let of_all = |others: usize| f64::from(together) / (f64::from(together) + others as f64);
    let (precision, recall) = (of_all(wrongly.len()), of_all(apart.len()));
    println!(
        "{} messages, {group} groups: precision {precision:.4}, recall {recall:.4}",
        all.len()
    );
    assert!(all.len() > 600 && group > 350, "{} messages, {group} groups", all.len());
    assert!(precision >= 0.99, "precision {precision}: {wrongly:#?}");
    assert!(recall >= 0.98, "recall {recall}: {apart:#?}");
}

#[test]
fn codes_tell_causes_apart() {
    let mut codes: Vec<&str> = Vec::new();
    let mut messages = 0;
    for line in CODES.lines().skip(1).filter(|line| !line.is_empty()) {
        if let Some((_, of_kind)) = line.strip_prefix("# ").and_then(|line| line.split_once(": ")) {
            codes = of_kind.split(' ').collect();
            continue;
        }
        let mut prints: Vec<String> =
            codes.iter().map(|code| of_message(&line.replace('§', code))).collect();
        prints.sort();
        prints.dedup();
        assert_eq!(prints.len(), codes.len(), "{line}");
        messages += codes.len();
    }
    assert!(messages > 1_500, "{messages}");
}

#[test]
fn counts_do_not() {
    for line in COUNTS.lines().skip(1).filter(|line| !line.is_empty()) {
        let numbers = ["1", "3", "17", "200", "404", "500", "4711", "100000"];
        let mut prints: Vec<String> =
            numbers.iter().map(|number| of_message(&line.replace('§', number))).collect();
        prints.dedup();
        assert_eq!(prints.len(), 1, "{line}");
    }
}

/// Messages that are the same error.
const SAME: &[&[&str]] = &[
    &["timeout after 30 s", "timeout after 31 s", "timeout after 1,200 s", "timeout after 0.5 s"],
    &["gave up after 500ms", "gave up after 5 s", "gave up after 1.5ms", "gave up after 2 minutes"],
    &["needs 64MiB of memory", "needs 4096MiB of memory"],
    &["waited 1m30s for a turn", "waited 10m5s for a turn"],
    &["the query returned 3", "the query returned 17"],
    &["f() returned 3, expected 7", "f() returned 17, expected 7"],
    &["read() returned 12", "read() returned 200"],
    &["cache returned 3 GB", "cache returned 17 GB"],
    &["lottery returned 1, 2, 3", "lottery returned 4, 5, 6"],
    &["returned 4711", "returned 100000"],
    &["expired Dec 1, 2026", "expired Jan 25, 2027", "expired November 25, 2025"],
    &["silent since Dec 1", "silent since May 31"],
    &["log begins 25/Nov/2026:10:00:00", "log begins 01/Dec/2025:23:59:59"],
    &["no lease for 00:1a:2b:3c:4d:5e", "no lease for ff:ee:dd:cc:bb:aa"],
    &[
        "no execution 5f2b7c1e-8a3d-4f60-9c1b-2d3e4f506172 is stored",
        "no execution 00000000-0000-4000-8000-000000000000 is stored",
    ],
    &["cannot find 65a1b2c3d4e5f60718293a4b", "cannot find 5eb63bbbe01eeed093cb22bb"],
    &["tool call call_abc123XYZ failed", "tool call call_q9W8e7R6t5 failed"],
    &["request req_011CQ5KxT refused", "request req_7f8A9b0Cd refused"],
    &["job batch-2024-77-a9f3c1 is gone", "job batch-2025-78-0bd4f2 is gone"],
    &["connect ECONNREFUSED 127.0.0.1:5432", "connect ECONNREFUSED 10.1.22.7:6000"],
    &["no route to [2001:db8::1]:443", "no route to [fe80::aa:1]:8443"],
    &["segfault at 0x7ffd3c2a10", "segfault at 0xdeadbeef"],
    &["<Object object at 0x10f3a2b50> is no model", "<Object object at 0x7f01aa> is no model"],
    &["mail to ann@example.com bounced", "mail to bo.b+x@mail.example.org bounced"],
    &[
        "started 2026-11-25T12:13:14.123Z, gave up",
        "started 2025-01-02T03:04:05+01:00, gave up",
        "started 2025-01-02 03:04:05, gave up",
    ],
    &["retry after Wed, 21 Oct 2015 07:28:00 GMT", "retry after Mon, 02 Mar 2026 17:08:59 GMT"],
    &[
        "GET https://api.example.com/v1/threads/thread_a1B2c3D4/runs?limit=20&after=x failed: 500",
        "GET https://api.example.com/v1/threads/thread_Zz9Yy8Xx7/runs?limit=1 failed: 500",
    ],
    &["no such file: /tmp/run-17/out_3.json", "no such file: /tmp/run-4/out_12.json"],
    &["cannot open /home/ann/data/a.txt", "cannot open /home/bob/data/a.txt"],
    &[r"cannot open C:\Users\ann\x7.log", r"cannot open C:\Users\bob\x12.log"],
    &["line 3, column 14: bad token", "line 120, column 1: bad token"],
    &["shapes (3, 4) and (5, 6, 7) do not fit", "shapes (3, 4, 9) and (1, 2) do not fit"],
    &["invalid literal for int(): '12a'", "invalid literal for int(): '99zz'"],
    &["cannot parse \"A-17 x\" as a number", "cannot parse \"B 9\" as a number"],
    &[
        "Error code: 429 - {'error': {'message': 'Rate limit reached for gpt-4 in org-aB3dE6: limit 10000', 'type': 'tokens'}}",
        "Error code: 429 - {'error': {'message': 'Rate limit reached for gpt-4 in org-zY9xW8: limit 200', 'type': 'tokens'}}",
    ],
    &["用户123不存在", "用户98不存在"],
    &["接続がタイムアウトしました（30秒）", "接続がタイムアウトしました（5秒）"],
    &["Ошибка: файл 17 не найден", "Ошибка: файл 4096 не найден"],
    &["انتهت المهلة بعد ٣٠ ثانية", "انتهت المهلة بعد ٤٥ ثانية"],
    &["Übertragung abgebrochen nach 3,5 MB", "Übertragung abgebrochen nach 12,25 MB"],
    &["a  b\n c 1", "a b c 2"],
    &[
        "Traceback (most recent call last):\n  File \"a.py\", line 3, in f\n    x()\nValueError: bad value 3",
        "Traceback (most recent call last):\n  File \"b.py\", line 77, in <module>\n    y()\nValueError: bad value 8",
    ],
    &[
        "TypeError: x is not a function\n    at run (/srv/app/a.js:10:3)\n    at main (/srv/app/b.js:1:1)",
        "TypeError: x is not a function\n    at go (/srv/app/c.js:99:8)",
    ],
    &[
        "task [train] failed on worker-3.cluster-a9f1c22e7b.local",
        "task [train] failed on worker-12.cluster-0c4b18aa9d.local",
    ],
];

#[test]
fn what_differs_from_time_to_time_does_not_count() {
    let mut patterns: Vec<String> = Vec::new();
    for same in SAME {
        let first = pattern(same[0]);
        for other in *same {
            assert_eq!(pattern(other), first, "{other:?} and {:?}", same[0]);
        }
        assert!(!first.is_empty());
        patterns.push(first);
    }
    // And all these errors are different ones.
    patterns.sort();
    patterns.dedup();
    assert_eq!(patterns.len(), SAME.len());
}

#[test]
fn words_do_count() {
    for (one, other) in [
        ("KeyError: 'model'", "KeyError: 'user'"),
        ("cannot read users", "cannot write users"),
        ("用户不存在", "用户已存在"),
        ("connection refused", "connection reset"),
        ("exit code: -11", "exit code: 137"),
        ("exit status 1", "exit status 137"),
        ("train.py returned 137", "train.py returned -9"),
        ("train.exe returned 3221225477", "train.exe returned 3221225725"),
        ("train.exe returned -1073741819", "train.exe returned -1073741571"),
        ("GET https://a.example/x failed: 500", "GET https://a.example/x failed: 503"),
        ("gpt-4 is overloaded", "gpt-4o is overloaded"),
        ("No module named 'numpy'", "No module named 'scipy'"),
        ("HttpError in S3UploadFailedError", "HttpError in S3DownloadFailedError"),
        ("can't open", "won't open"),
        ("GET https://a.example/x failed", "GET https://b.example/x failed"),
        ("column \"name\" is missing", "column \"age\" is missing"),
    ] {
        assert_ne!(pattern(one), pattern(other), "{one} {other}");
    }
}

#[test]
fn patterns_can_be_read() {
    for (message, told) in [
        ("timeout after 30 s (try 2 of 3)", "timeout after <duration> (try <number> of <number>)"),
        ("user 42 at ann@example.com", "user <number> at <address>"),
        ("base64Decode of Neo4jError", "base64Decode of Neo4jError"),
        ("don't use 'a b'", "don't use '<value>'"),
        ("", ""),
        ("'", "'"),
        ("\"unfinished 7", "\"unfinished <number>"),
    ] {
        assert_eq!(pattern(message), told);
    }
}

#[test]
fn any_text_has_a_pattern_and_a_long_one_is_cut() {
    let odd = ["\u{0}", "''''", "://", "@", "0x", "::", "<number>", "é\u{301}1", "\\", "/", "=,=,"];
    for text in odd {
        pattern(text);
    }
    let long = "wörd 1 ".repeat(10_000);
    assert!(pattern(&long).len() < 8_000);
}
