//! Numbers that tell one cause from another: codes of HTTP, of processes, signals, the operating system, databases and
//! devices. Only what stands around a number says that it is one of these.

use super::context::{Before, before};
use super::exits::is_exit;

/// Words whose number is a code.
const STRONG: [&str; 27] = [
    "status",
    "errno",
    "sqlstate",
    "sqlcode",
    "signal",
    "sig",
    "signum",
    "rc",
    "retcode",
    "ret",
    "exit",
    "exited",
    "http",
    "http/1.0",
    "http/1.1",
    "http/2",
    "http/2.0",
    "http/3",
    "hresult",
    "ntstatus",
    "winerror",
    "xid",
    "msg",
    "nvidiaxid",
    "statuses",
    "httpstatuserror",
    "apistatuserror",
];

/// Codes that are the value of a user.
const OTHER_CODES: [&str; 18] = [
    "zip",
    "zipcode",
    "postal",
    "postcode",
    "postalcode",
    "bar",
    "barcode",
    "qr",
    "promo",
    "coupon",
    "verification",
    "area",
    "country",
    "source",
    "confirmation",
    "discount",
    "access",
    "invite",
];

const FILLERS: [&str; 14] = [
    "with", "by", "as", "is", "was", "of", "a", "an", "got", "the", "received", "value", "number",
    "returned",
];

/// Words before the status of an answer.
const ANSWERS: [&str; 26] = [
    "returned",
    "returns",
    "responded",
    "responds",
    "respond",
    "response",
    "got",
    "received",
    "answered",
    "said",
    "says",
    "replied",
    "gave",
    "failed",
    "failure",
    "request",
    "upstream",
    "server",
    "fetch",
    "threw",
    "reply",
    "apierror",
    "httperror",
    "servererror",
    "clienterror",
    "responseerror",
];

/// What HTTP registers, and what large services add to it.
const HTTP_ERRORS: [u16; 50] = [
    400, 401, 402, 403, 404, 405, 406, 407, 408, 409, 410, 411, 412, 413, 414, 415, 416, 417, 418,
    421, 422, 423, 424, 425, 426, 428, 429, 431, 451, 499, 500, 501, 502, 503, 504, 505, 507, 508,
    511, 520, 521, 522, 523, 524, 525, 526, 527, 529, 530, 598,
];

const REASONS: [&str; 40] = [
    "bad request",
    "unauthorized",
    "unauthorised",
    "payment required",
    "forbidden",
    "not found",
    "method not allowed",
    "not acceptable",
    "proxy authentication",
    "request timeout",
    "request time-out",
    "conflict",
    "gone",
    "length required",
    "precondition failed",
    "payload too large",
    "request entity too large",
    "content too large",
    "uri too long",
    "request-uri too",
    "unsupported media",
    "expectation failed",
    "misdirected",
    "unprocessable",
    "locked",
    "failed dependency",
    "too early",
    "upgrade required",
    "too many requests",
    "request header fields",
    "internal server error",
    "internal error",
    "not implemented",
    "bad gateway",
    "service unavailable",
    "gateway timeout",
    "gateway time-out",
    "overloaded",
    "client error",
    "server error",
];

const GRPC: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// Words that make the number behind them an amount, whatever else it looks like.
const AMOUNTS: [&str; 20] = [
    "expected", "limit", "max", "maximum", "min", "minimum", "size", "length", "count", "than",
    "least", "most", "total", "exceeds", "over", "under", "tokens", "rows", "items", "timeout",
];

/// Makers and libraries of devices, whose errors are numbered.
const DEVICES: [&str; 12] = [
    "cuda", "nccl", "cublas", "cudnn", "hip", "rocm", "cufft", "cusparse", "nvml", "miopen",
    "tensorrt", "cudart",
];

/// What an error is called, in the languages that programs speak most.
const ERRORS: [&str; 20] = [
    "error",
    "err",
    "fault",
    "oserror",
    "exception",
    "abort",
    "fehler",
    "erreur",
    "errore",
    "erro",
    "fallo",
    "ошибка",
    "błąd",
    "chyba",
    "fout",
    "hata",
    "错误",
    "錯誤",
    "エラー",
    "오류",
];

/// Classes of SQLSTATE.
const CLASSES: [&str; 45] = [
    "01", "02", "03", "07", "08", "09", "0A", "0B", "0F", "0L", "0P", "20", "21", "22", "23", "24",
    "25", "26", "27", "28", "2B", "2D", "2F", "34", "38", "39", "3B", "3D", "3F", "40", "42", "44",
    "53", "54", "55", "57", "58", "72", "F0", "HV", "HY", "IM", "P0", "XX", "S0",
];

/// Vendors whose codes are letters and digits.
const VENDORS: [&str; 64] = [
    "ORA",
    "TNS",
    "PLS",
    "DPI",
    "DPY",
    "SQL",
    "DB",
    "MY",
    "ERR",
    "CVE",
    "CWE",
    "RUSTSEC",
    "KB",
    "JBAS",
    "UTL",
    "OCI",
    "RMAN",
    "LPX",
    "AMQ",
    "RFC",
    "ISO",
    "PEP",
    "ECMA",
    "IEC",
    "IEEE",
    "AADSTS",
    "TS",
    "CS",
    "LNK",
    "MSB",
    "NU",
    "NETSDK",
    "PGRST",
    "HHH",
    "HV",
    "WFLYCTRL",
    "WFLYSRV",
    "IJ",
    "ARJUNA",
    "UT",
    "ELY",
    "SRVE",
    "CWWKE",
    "DSRA",
    "BC",
    "FS",
    "VB",
    "CA",
    "SA",
    "SC",
    "RS",
    "SPARK",
    "KAFKA",
    "AWS",
    "AZ",
    "GCP",
    "SQLSTATE",
    "PRISMA",
    "DEP",
    "YN",
    "ELIFECYCLE",
    "AADB",
    "MSAL",
    "WSREP",
];

fn text(chars: &[char]) -> String {
    chars.iter().collect()
}

/// What stands behind a place, as far as it is looked at.
fn after(chars: &[char], end: usize, reach: usize) -> String {
    text(&chars[end..(end + reach).min(chars.len())])
}

/// Whether the words before say outright that a code follows.
fn announced(before: &Before, behind: &str) -> bool {
    if !before.is_close() {
        return false;
    }
    let named = |index: usize| {
        let word = before.word(index);
        let ends = ["code", "codes", "errno", "status", "sqlstate", "statust"];
        if OTHER_CODES.contains(&word)
            || word.starts_with("code") && OTHER_CODES.contains(&before.word(index + 1))
        {
            return false;
        }
        STRONG.contains(&word)
            || ends.iter().any(|end| word.ends_with(end))
            || word == "state" && before.word(index + 1) == "sql"
            || word.ends_with(".errno")
    };
    if named(0) {
        return true;
    }
    let filler = |index: usize| FILLERS.contains(&before.word(index));
    // Exited with 137; status code of 503; signal number 9.
    let told = filler(0) && before.gap.trim().len() <= 1 && (named(1) || filler(1) && named(2));
    told && !plural_follows(behind)
        || before.word(0) == "no" && before.word(1) == "error"
        || before.word(0) == "with" && matches!(before.word(1), "exit" | "terminated" | "died")
}

/// Error 700, error(700), Error: 404 at its end.
fn of_error(before: &Before, behind: &str) -> bool {
    let word = before.word(0);
    let is_error = ERRORS.contains(&word)
        || word.len() > 5 && word.ends_with("error")
        || word.ends_with("errort");
    // What these name is a value of the program.
    if matches!(word, "keyerror" | "indexerror" | "valueerror" | "typeerror" | "assertionerror") {
        return false;
    }
    // An identifier that is joined to a number is a name with a number.
    if !is_error || before.gap.is_empty() || before.gap.contains('_') || !before.is_close() {
        return false;
    }
    if !before.gap.contains([':', '-']) {
        return !behind.trim_start().starts_with("of ");
    }
    let next = behind.trim_start().chars().next();
    next.is_none_or(|next| !next.is_alphanumeric() && next != '/' || next.is_uppercase())
        && !behind.starts_with(['.', '/'])
}

fn is_http(digits: &str) -> bool {
    digits.parse().is_ok_and(|number: u16| HTTP_ERRORS.contains(&number))
}

/// The reason of an HTTP status, right behind it.
fn reason_follows(behind: &str) -> bool {
    let rest = behind.trim_start_matches([' ', ':', '-', '(', '–', ',', '.']).to_lowercase();
    REASONS.iter().any(|reason| rest.starts_with(reason))
}

/// What may stand behind the status of an answer: nothing that it could be the number of.
fn ends(behind: &str) -> bool {
    let rest = behind.trim_start();
    let Some(first) = rest.chars().next() else { return true };
    let word: String = rest.chars().take_while(|c| c.is_alphabetic()).collect();
    if first == '.' || first == ':' || first == '-' {
        return !rest[1..].starts_with(|c: char| c.is_ascii_digit());
    }
    !first.is_alphanumeric() && !matches!(first, '/' | '%' | '_')
        || first.is_uppercase()
        || [
            "error", "response", "status", "code", "from", "for", "on", "when", "while", "after",
            "to", "from", "page", "http",
        ]
        .contains(&word.as_str())
}

fn plural_follows(behind: &str) -> bool {
    let rest = behind.trim_start();
    let word: String = rest.chars().take_while(|c| c.is_alphabetic()).collect();
    word.starts_with(char::is_lowercase)
        && word.ends_with('s')
        && !matches!(word.as_str(), "is" | "was" | "has" | "status" | "this")
}

fn status_of_http(chars: &[char], at: usize, end: usize, before: &Before, behind: &str) -> bool {
    let digits = text(&chars[at..end]);
    let is_status = digits.len() == 3 && matches!(digits.as_bytes()[0], b'1'..=b'5');
    if !is_status {
        return false;
    }
    let begins = at == 0 || chars[at - 1] == '\n' || before.words.is_empty();
    let answered = |index: usize| ANSWERS.contains(&before.word(index));
    let filler = |index: usize| FILLERS.contains(&before.word(index));
    let told = answered(0) || filler(0) && (answered(1) || filler(1) && answered(2));
    // User 404 not found.
    let named = before.gap == " " && !told && behind.trim_start().starts_with(char::is_lowercase);
    if reason_follows(behind) && (begins || !named) {
        return true;
    }
    let has =
        |words: &[&str]| before.words.iter().take(5).any(|word| words.contains(&word.as_str()));
    let amount = has(&AMOUNTS) && !has(&["status", "http", "statuscode", "code"]);
    if !is_http(&digits) || amount || plural_follows(behind) {
        return false;
    }
    if begins {
        let word: String = behind.trim_start().chars().take_while(|c| c.is_alphabetic()).collect();
        return ends(behind) || !word.is_empty() && !behind.starts_with(char::is_alphabetic);
    }
    // Item[404] is the place of something.
    let open = at > 1 && matches!(chars[at - 1], '(' | '[') && !chars[at - 2].is_alphanumeric();
    if open && chars.get(end).is_some_and(|c| matches!(c, ')' | ']')) {
        return true;
    }
    if behind.starts_with(" error") || behind.starts_with(" response") {
        return true;
    }
    let arrow = before.gap.contains("->") || before.gap.contains("=>");
    (told || arrow || before.word(0) == "error") && before.is_close() && ends(behind)
}

fn is_state(code: &str) -> bool {
    code.len() == 5
        && code.bytes().all(|byte| byte.is_ascii_digit() || byte.is_ascii_uppercase())
        && code.get(..2).is_some_and(|class| CLASSES.contains(&class))
}

/// Alone between brackets or quotes, or at the very beginning before a colon.
fn stands_alone(chars: &[char], at: usize, end: usize) -> bool {
    let open = at == 0 || matches!(chars[at - 1], '(' | '[' | '\'' | '"' | '\n');
    let close = match chars.get(end) {
        Some(c) => matches!(c, ')' | ']' | '\'' | '"' | ':'),
        None => false,
    };
    open && close
}

/// Whether these digits, perhaps with a minus before them, are a code.
pub fn is_code(chars: &[char], at: usize, end: usize) -> bool {
    let digits = end - at;
    if digits == 0 || digits > 10 {
        return false;
    }
    let sign = at > 0 && chars[at - 1] == '-' && (at == 1 || !chars[at - 2].is_alphanumeric());
    let from = if sign { at - 1 } else { at };
    let before = before(chars, from);
    let behind = after(chars, end, 40);
    // 3 of 5, 3/5: not one of the codes.
    let of = behind.starts_with('/') || behind.trim_start().starts_with("of ");
    if of {
        return false;
    }
    if announced(&before, &behind) || is_exit(&text(&chars[at..end]), sign, &before, &behind) {
        return true;
    }
    if digits > 6 {
        return false;
    }
    if of_error(&before, &behind) && !plural_follows(&behind) {
        return true;
    }
    if status_of_http(chars, at, end, &before, &behind) {
        return true;
    }
    // OSError(28, 'No space left on device'); (1062, "Duplicate entry")
    let rest = behind.trim_start_matches([',', ' ']);
    if from > 0
        && chars[from - 1] == '('
        && behind.starts_with(',')
        && rest.starts_with(['\'', '"'])
    {
        return true;
    }
    // 14 UNAVAILABLE: no connection
    let name: String = rest.chars().take_while(|c| c.is_ascii_uppercase() || *c == '_').collect();
    if digits <= 2 && behind.starts_with(' ') && GRPC.contains(&name.as_str()) {
        return true;
    }
    let alone = stands_alone(chars, at, end) || before.word(0) == "state" && before.is_close();
    if alone
        && is_state(&text(&chars[at..end]))
        && !before.words.iter().any(|word| AMOUNTS.contains(&word.as_str()))
    {
        return true;
    }
    let of_device = |index: usize| DEVICES.iter().any(|name| before.word(index).starts_with(name));
    if (matches!(before.word(0), "returned" | "failure" | "failed")
        || ERRORS.contains(&before.word(0)))
        && of_device(1)
        && before.is_close()
    {
        return true;
    }
    // An illegal memory access was encountered (700); cudaErrorIllegalAddress (700); ERROR 1045 (28000)
    let bracket = from > 0
        && matches!(chars[from - 1], '(' | '[')
        && matches!(behind.chars().next(), Some(')' | ']'));
    bracket
        && (before.word(0).contains("error")
            || before.word(0).contains("exception")
            || (0..before.words.len()).any(of_device))
}

/// Letters and digits, with digits first or mixed, that are a state of SQL.
pub fn is_state_of_sql(chars: &[char], at: usize, end: usize) -> bool {
    let code = text(&chars[at..end]);
    if !is_state(&code) {
        return false;
    }
    announced(&before(chars, at), "")
        || stands_alone(chars, at, end)
        || before(chars, at).word(0) == "state"
        || code.bytes().any(|byte| byte.is_ascii_uppercase())
            && code.starts_with(|c: char| c.is_ascii_digit() || c == 'H')
}

/// 0xC0000005, 0x80070005: what Windows and drivers call their errors, beside addresses.
pub fn is_hexadecimal_code(chars: &[char], at: usize, end: usize) -> bool {
    let digits = text(&chars[at + 2..end]).to_lowercase();
    if digits.len() > 8 {
        return false;
    }
    let before = before(chars, at);
    digits.len() == 8
        && ["8007", "8000", "8004", "c000", "8024", "800b"]
            .iter()
            .any(|family| digits.starts_with(family))
        || announced(&before, "")
        || matches!(before.word(0), "error" | "exception" | "err") && before.is_close()
}

/// TS2304, E0308, ORA01017, LNK2019: capitals and then digits, where a code would stand.
pub fn is_lettered(chars: &[char], at: usize, end: usize) -> bool {
    let part = text(&chars[at..end]);
    let letters = part.bytes().take_while(u8::is_ascii_uppercase).count();
    let digits = part.len() - letters;
    if letters == 0
        || letters > 10
        || !(2..=7).contains(&digits)
        || !part.bytes().skip(letters).all(|b| b.is_ascii_digit())
    {
        return false;
    }
    if VENDORS.contains(&&part[..letters]) {
        return true;
    }
    if letters <= 2 && digits > 5 {
        return false;
    }
    place_of_code(chars, at, end)
}

/// Right behind the word for an error, or at the beginning of a line and before a colon.
fn place_of_code(chars: &[char], at: usize, end: usize) -> bool {
    let before = before(chars, at);
    let told = matches!(
        before.word(0),
        "error" | "err" | "warning" | "code" | "exception" | "fatal" | "errorcode" | "errno"
    ) && before.is_close();
    let begins = at == 0 || chars[at - 1] == '\n';
    let next = chars.get(end);
    told || begins
        && next.is_some_and(|c| matches!(c, ':' | ' ' | ']'))
        && digits_are_few(chars, at, end)
        || {
            let bracket = at > 0
                && matches!(chars[at - 1], '[' | '(')
                && next.is_some_and(|c| matches!(c, ']' | ')' | ':'));
            bracket && digits_are_few(chars, at, end)
        }
}

fn digits_are_few(chars: &[char], at: usize, end: usize) -> bool {
    chars[at..end].iter().filter(|c| c.is_ascii_digit()).count() <= 5
}

/// ORA-00942, CVE-2024-3094: letters, a dash and digits.
pub fn is_dashed(chars: &[char], at: usize, end: usize) -> bool {
    let word = text(&chars[at..end]);
    let Some((letters, digits)) = word.split_once('-') else { return false };
    if letters.len() < 2
        || !letters.bytes().all(|byte| byte.is_ascii_uppercase())
        || digits.is_empty()
        || !digits.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-')
    {
        return false;
    }
    VENDORS.contains(&letters) || {
        let before = before(chars, at);
        matches!(before.word(0), "error" | "code" | "err" | "errorcode") && before.is_close()
    }
}
