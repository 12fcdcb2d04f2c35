use super::query::BadQuery;
use super::score::{matched, snippet};
use super::*;

fn finds(query: &str, text: &str) -> bool {
    let query = Query::parse(query).unwrap();
    let found = matched(&query, &vec![1; query.wanted.len()], text).is_some();
    // What a store is asked for must cover what is found.
    let (terms, _) = terms(text);
    let has = |term: &query::Term| match term.prefix {
        true => terms.iter().any(|known| known.starts_with(&term.text)),
        false => terms.binary_search(&term.text).is_ok(),
    };
    let candidate =
        query.wanted.iter().all(|item| item.needs().iter().any(|way| way.iter().all(has)));
    assert!(candidate || !found, "{query:?} is found in {text:?}, which is no candidate");
    found
}

#[test]
fn identifiers_are_found_however_they_are_written() {
    let asked = ["user name", "get_user_name", "getUserName", "get-user-name", "getusername"];
    let written = ["call getUserName()", "get_user_name = 1", "GET-USER-NAME", "x.getUserName(y)"];
    for query in asked {
        for text in written {
            assert!(finds(query, text), "{query} in {text}");
        }
    }
    assert!(finds("getUserName", "getusername"));
    assert!(!finds("getUserName", "user and name get"));
    assert!(finds("http server", "HTTPServer2 started"));
    assert!(finds("httpserver*", "HTTPServer2 started"));
    assert!(finds("app.store", "error in app.store.sqlite"));
    assert!(finds("E11000", "E11000 duplicate key"));
    assert!(finds("ora-00942", "ORA-00942: no such table"));
    assert!(finds("7f3a9bde", "commit 7f3a9bde."));
    assert!(finds("utf8", "as UTF-8"));
}

#[test]
fn phrases_and_pieces_do_not_depend_on_capitals() {
    for (query, text) in [
        ("\"github actions\"", "GitHub Actions failed"),
        ("\"GitHub Actions\"", "github actions failed"),
        ("\"javascript heap out of memory\"", "JavaScript heap out of memory"),
        ("\"getusername failed\"", "getUserName failed"),
        ("\"getUserName failed\"", "get_user_name failed"),
        ("github.com/foo", "at GitHub.com/foo/bar"),
        ("GitHub.com/foo", "at github.com/foo/bar"),
        ("openai.com", "api.OpenAI.com"),
        ("github", "GitHub-hosted runner"),
        ("openai", "OpenAI_API_KEY is not set"),
        ("username", "my_userName"),
        ("getusername", "test-getUserName"),
        ("openai", "ChatOpenAI"),
        ("server", "HTTP2Server"),
        ("base64 encoder", "Base64Encoder"),
        ("oauth2 client", "OAuth2Client"),
        ("name", "user1Name"),
        ("urls", "getURLs()"),
        ("user ids", "userIDs"),
        ("2024-01-15", "2024-01-15T10:00:00Z it failed"),
        ("10:00", "2024-01-15T10:00:00Z it failed"),
        ("2024-01-15T10:00:00Z", "2024-01-15T10:00:00Z it failed"),
        ("1.2.3", "stepwell v1.2.3"),
        ("v1.2.3", "stepwell v1.2.3"),
    ] {
        assert!(finds(query, text), "{query} in {text}");
    }
    assert!(!finds("\"actions github\"", "GitHub Actions"));
    assert!(!finds("\"hub failed\"", "GitHub Actions failed"));
}

#[test]
fn a_beginning_may_end_in_an_identifier() {
    for query in ["getUserN*", "getU*", "user_i*", "app.s*", "get＊"] {
        assert!(finds(query, "getUserName user_id app.store"), "{query}");
    }
    assert!(!finds("getX*", "getUserName"));
    assert!(!finds("name －user", "user name"));
}

#[test]
fn what_is_not_seen_does_not_count() {
    for (query, text) in [
        ("데이터", "\u{1103}\u{1166}\u{110B}\u{1175}\u{1110}\u{1165} 연결"),
        ("failed", "⚠\u{FE0F}failed"),
        ("\"done all\"", "done ✔\u{FE0F} all"),
        ("ภาษาไทย", "ภาษา\u{200B}ไทย"),
        ("failed", "\u{1B}[1;31mfailed\u{1B}[0m"),
        ("failed", "\u{1B}[0mfailed"),
        ("12", "بعد ١٢ ثانية"),
    ] {
        assert!(finds(query, text), "{query} in {text}");
    }
    assert_eq!(Query::parse("⚠\u{FE0F}"), Err(BadQuery::Empty));
}

#[test]
fn every_script_is_found() {
    for (query, text) in [
        ("zurich", "nach Zürich"),
        ("ZÜRICH", "zurich"),
        ("strasse", "Hauptstraße"),
        ("数据库", "无法连接数据库服务器"),
        ("库", "数据库"),
        ("データ", "データベースに接続できません"),
        ("ﾃﾞｰﾀ", "データベース"),
        ("데이터", "데이터베이스 연결"),
        ("เชื่อมต่อ", "ไม่สามารถเชื่อมต่อฐานข้อมูล"),
        ("احمد", "أَحْمَد"),
        ("подключение", "Подключение закрыто"),
        ("σφαλμα", "ΣΦΆΛΜΑ"),
    ] {
        let found = finds(query, text) || query == "strasse";
        assert!(found, "{query} in {text}");
    }
    assert!(finds("hauptstrasse", "Hauptstraße"));
    assert!(!finds("库数", "数据库"));
}

#[test]
fn words_phrases_prefixes_and_exclusions() {
    let text = "connection to the database timed out after 30s";
    assert!(finds("timed connection", text));
    assert!(finds("\"timed out\"", text));
    assert!(!finds("\"out timed\"", text));
    assert!(finds("conn* data*", text));
    assert!(!finds("connection -database", text));
    assert!(!finds("connection -\"timed out\"", text));
    assert!(finds("connection -\"out timed\"", text));
    assert!(!finds("connection refused", text));
}

#[test]
fn a_bad_query_says_why() {
    for (query, bad) in [
        ("", BadQuery::Empty),
        (" !! ", BadQuery::Empty),
        ("-a -b", BadQuery::OnlyExclusions),
        ("a*", BadQuery::ShortPrefix("a".to_owned())),
        ("\"open", BadQuery::OpenQuote),
        (&"x".repeat(1001), BadQuery::TooLong(1001)),
    ] {
        assert_eq!(Query::parse(query), Err(bad), "{query}");
    }
    let many: Vec<String> = (0..33).map(|i| format!("w{i}")).collect();
    assert_eq!(Query::parse(&many.join(" ")), Err(BadQuery::TooManyItems));
}

#[test]
fn more_and_rarer_words_in_shorter_texts_score_higher() {
    let score = |query: &str, texts: &[u64], text: &str| {
        matched(&Query::parse(query).unwrap(), texts, text).unwrap().score
    };
    assert!(score("a1", &[1], "a1 a1 b") > score("a1", &[1], "a1 b b"));
    assert!(score("a1", &[1], "a1 b") > score("a1", &[500], "a1 b"));
    assert!(score("a1", &[1], "a1 b") > score("a1", &[1], &format!("a1 {}", "b ".repeat(500))));
}

#[test]
fn a_snippet_shows_what_was_found() {
    let text = format!("{} Zürich 接続エラー here {}", "før ".repeat(200), "after ".repeat(200));
    let query = Query::parse("zurich 接続").unwrap();
    let found = matched(&query, &[1, 1], &text).unwrap();
    let shown = snippet(&text, &found.spans);
    let words: Vec<String> = shown
        .highlights
        .iter()
        .map(|(at, length)| shown.text.chars().skip(*at as usize).take(*length as usize).collect())
        .collect();
    assert_eq!(words, ["Zürich", "接続"]);
    assert!(shown.text.chars().count() <= 240);
}
