//! Words whose digits belong to them: names of models and their versions, of protocols, types and algorithms.

use super::context::Before;
use super::shapes::is_identity;

/// Families of models, in small letters; a digit, a dash or a dot follows.
const FAMILIES: [&str; 62] = [
    "gpt",
    "chatgpt",
    "claude",
    "llama",
    "codellama",
    "gemini",
    "gemma",
    "mistral",
    "mixtral",
    "codestral",
    "ministral",
    "pixtral",
    "magistral",
    "devstral",
    "qwen",
    "qwq",
    "deepseek",
    "phi",
    "grok",
    "glm",
    "chatglm",
    "kimi",
    "minimax",
    "text-embedding",
    "text-davinci",
    "text-curie",
    "text-babbage",
    "text-ada",
    "davinci",
    "babbage",
    "code-davinci",
    "embedding",
    "dall-e",
    "dalle",
    "whisper",
    "tts",
    "omni-moderation",
    "command-r",
    "command-a",
    "embed-english",
    "embed-multilingual",
    "rerank",
    "voyage",
    "jina",
    "bge",
    "gte",
    "nomic",
    "stable-diffusion",
    "sdxl",
    "flux",
    "falcon",
    "vicuna",
    "alpaca",
    "starcoder",
    "wizardlm",
    "zephyr",
    "sonnet",
    "haiku",
    "opus",
    "titan-embed",
    "titan-text",
    "nova-pro",
];
const MORE_FAMILIES: [&str; 14] = [
    "jamba",
    "granite",
    "olmo",
    "yi",
    "internlm",
    "baichuan",
    "bert",
    "roberta",
    "distilbert",
    "t5",
    "flan",
    "sora",
    "imagen",
    "veo",
];

/// What is called by letters with digits behind them.
const PREFIXES: [&str; 58] = [
    "utf",
    "sha",
    "md",
    "base",
    "int",
    "uint",
    "float",
    "fp",
    "bf",
    "nf",
    "ipv",
    "aes",
    "rsa",
    "ecdsa",
    "ed",
    "rfc",
    "iso",
    "latin",
    "http",
    "https",
    "h",
    "s",
    "ec",
    "python",
    "py",
    "php",
    "lua",
    "oauth",
    "tls",
    "ssl",
    "tlsv",
    "sslv",
    "smtp",
    "imap",
    "web",
    "log",
    "slf",
    "win",
    "secp",
    "p",
    "mp",
    "es",
    "bz",
    "zip",
    "crc",
    "adler",
    "arm",
    "amd",
    "mips",
    "psycopg",
    "urllib",
    "boto",
    "nvml",
    "libcudart",
    "libcublas",
    "libcudnn",
    "sqlite",
    "blake",
];
/// What is told apart by its digits only in these very forms.
const EXACT: [&str; 60] = [
    "x86",
    "x64",
    "x509",
    "i386",
    "i686",
    "i18n",
    "l10n",
    "k8s",
    "utf8mb4",
    "utf8mb3",
    "s390x",
    "ppc64le",
    "arm64",
    "amd64",
    "win32",
    "posix1",
    "2fa",
    "3d",
    "2d",
    "4k",
    "4xx",
    "5xx",
    "3xx",
    "2xx",
    "8bit",
    "16bit",
    "32bit",
    "64bit",
    "a10",
    "a10g",
    "a100",
    "h100",
    "h200",
    "v100",
    "p100",
    "b100",
    "b200",
    "gb200",
    "gh200",
    "t4",
    "l4",
    "l40",
    "l40s",
    "a40",
    "a6000",
    "rtx3090",
    "rtx4090",
    "rtx5090",
    "mi250",
    "mi300",
    "mi300x",
    "k80",
    "cp1252",
    "cp1251",
    "windows1252",
    "r2",
    "u2f",
    "b2b",
    "p2p",
    "oauth2",
];

/// Words in which digits stand behind a dash.
const WHOLE: [&str; 26] = [
    "utf-8",
    "utf-16",
    "utf-32",
    "utf-7",
    "sha-1",
    "sha-256",
    "sha-512",
    "sha-3",
    "iso-8859-1",
    "iso-8859-15",
    "iso-8601",
    "x86-64",
    "x86_64",
    "rs-256",
    "base-64",
    "cp-1252",
    "windows-1252",
    "windows-1251",
    "aes-128",
    "aes-256",
    "md-5",
    "http/1.0",
    "http/1.1",
    "http/2",
    "http/2.0",
    "http/3",
];

/// Whether the digits of a run of letters and digits are part of a name.
pub fn keeps_digits(part: &str) -> bool {
    let small = part.to_ascii_lowercase();
    if EXACT.contains(&small.as_str()) {
        return true;
    }
    let letters = small.trim_end_matches(|c: char| c.is_ascii_digit());
    let digits = small.len() - letters.len();
    if (1..=5).contains(&digits) && PREFIXES.contains(&letters) {
        // h12 and p7 are numbered things.
        return letters.len() > 2
            || digits <= 1
            || matches!(letters, "md" | "fp" | "bf" | "nf" | "ed" | "py");
    }
    is_version(&small) || inside(part)
}

/// v1, v2beta1: versions of interfaces.
fn is_version(small: &str) -> bool {
    let Some(rest) = small.strip_prefix('v') else { return false };
    let first = rest.trim_start_matches(|c: char| c.is_ascii_digit());
    if first.len() == rest.len() || rest.len() - first.len() > 2 {
        return false;
    }
    let after = ["beta", "alpha", "rc", "preview"].iter().find_map(|word| first.strip_prefix(word));
    first.is_empty()
        || after.is_some_and(|after| after.len() <= 2 && after.bytes().all(|b| b.is_ascii_digit()))
}

/// batch/v1, apps/v1beta1
pub fn ends_in_version(word: &str) -> bool {
    word.rsplit_once('/').is_some_and(|(group, version)| {
        is_version(version) && group.chars().all(|c| c.is_ascii_lowercase() || c == '.')
    })
}

/// Neo4jError, base64Decode, i18n: digits between letters of one word.
fn inside(part: &str) -> bool {
    let bytes = part.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else { return false };
    if !first.is_ascii_alphabetic() || !last.is_ascii_alphabetic() || is_identity(part) {
        return false;
    }
    let digits = bytes.iter().filter(|byte| byte.is_ascii_digit()).count();
    digits > 0 && digits <= 3 && part.len() - digits >= 3
}

fn begins_with_family(word: &str) -> bool {
    let follows = |family: &&str| {
        word.strip_prefix(*family).is_some_and(|rest| {
            rest.is_empty()
                || rest.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '-' | '.' | '_'))
        })
    };
    if FAMILIES.iter().any(&follows) || MORE_FAMILIES.iter().any(follows) {
        return true;
    }
    // o1, o3-mini, o4-mini-2025-04-16
    let bytes = word.as_bytes();
    bytes.len() >= 2
        && bytes[0] == b'o'
        && matches!(bytes[1], b'1'..=b'9')
        && (bytes.len() == 2
            || bytes[2] == b'-' && bytes.get(3).is_some_and(u8::is_ascii_alphabetic))
}

/// 7b, 70B, 8x7b, 1.5b: how many parameters a model has.
fn is_parameter_count(piece: &str) -> bool {
    let Some(number) = piece.strip_suffix(['b', 'B']) else { return false };
    !number.is_empty() && number.chars().all(|c| c.is_ascii_digit() || matches!(c, '.' | 'x'))
}

/// Whether a word names a model, by its family, by its size, or since that is what stands before it.
pub fn is_model(word: &str, before: &Before) -> bool {
    if !word.contains(|c: char| c.is_ascii_digit())
        || !word
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | ':' | '/' | '@'))
        || !word.contains(|c: char| c.is_ascii_alphabetic())
    {
        return false;
    }
    let small = word.to_ascii_lowercase();
    if small.split(['/', ':', '.', '@']).any(begins_with_family) || begins_with_family(&small) {
        return true;
    }
    let pieces = || small.split(['-', '_', '/', ':']);
    if pieces().count() > 1 && pieces().skip(1).any(is_parameter_count) {
        return true;
    }
    let told = matches!(
        before.word(0),
        "model" | "models" | "modelid" | "modelname" | "engine" | "deployment" | "modelversion"
    );
    told && before.is_close()
        && !word.contains('/')
        && !word.split(['-', '_', '.', ':', '@']).any(|piece| is_identity(piece) && !is_date(piece))
}

fn is_date(piece: &str) -> bool {
    piece.len() == 8 && piece.starts_with("20") && piece.bytes().all(|byte| byte.is_ascii_digit())
}

/// Whether a word with digits is written like this by everybody.
pub fn is_whole(word: &str) -> bool {
    WHOLE.contains(&word.to_ascii_lowercase().as_str())
}

/// Whether a number is the version of an interface.
pub fn is_version_of_api(before: &Before) -> bool {
    let named = |index: usize| {
        matches!(before.word(index), "api" | "apiversion" | "anthropicversion" | "openaiversion")
    };
    before.is_close() && (named(0) || before.word(0) == "version" && named(1))
}
