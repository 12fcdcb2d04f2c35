use std::ffi::OsString;
use std::io::Write as _;

use super::super::StoreChoice;
use super::super::lists::OIDC_RULES;
use super::super::settings::{ENV_PREFIX, Kind, settings};
use super::*;

fn environment(pairs: &[(&str, &str)]) -> impl Iterator<Item = (OsString, OsString)> {
    let pairs: Vec<_> = pairs.iter().map(|(k, v)| (OsString::from(k), OsString::from(v))).collect();
    pairs.into_iter()
}

fn file(text: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    file.write_all(text.as_bytes()).expect("written");
    file
}

fn with_file(file: &tempfile::NamedTempFile) -> ServeFlags {
    ServeFlags { config: Some(file.path().to_owned()), ..ServeFlags::default() }
}

fn load(flags: &ServeFlags, pairs: &[(&str, &str)]) -> Result<(Config, Vec<Warning>), ConfigError> {
    Config::load(flags, environment(pairs))
}

#[test]
fn nothing_configured_is_the_default() {
    let (config, warnings) = load(&ServeFlags::default(), &[]).expect("defaults");
    assert_eq!(config, Config::default());
    assert_eq!(warnings, []);
    assert!(matches!(config.store(), StoreChoice::Sqlite { .. }));
}

#[test]
fn printed_defaults() {
    let expected = include_str!("tests/defaults.toml");
    assert_eq!(Config::default().printable(), expected);
}

#[test]
fn a_later_layer_wins() {
    let file = file(
        "listen = \"127.0.0.1:1\"\ndata_dir = \"/f\"\n[log]\nlevel = \"warn\"\nformat = \"json\"\n",
    );
    let (config, warnings) = load(
        &with_file(&file).with("listen", "127.0.0.1:3"),
        &[("STEPWELL_LISTEN", "127.0.0.1:2"), ("STEPWELL_LOG_LEVEL", "debug"), ("HOME", "/root")],
    )
    .expect("a good configuration");
    assert_eq!(warnings, []);
    assert_eq!(config.listen.port(), 3);
    assert_eq!(config.log.level, "debug");
    assert_eq!(config.data_dir, PathBuf::from("/f"));
    let printed = config.printable();
    assert!(printed.contains("listen = \"127.0.0.1:3\" # flag --listen\n"), "{printed}");
    assert!(printed.contains("level = \"debug\" # environment STEPWELL_LOG_LEVEL\n"), "{printed}");
    assert!(
        printed.contains(&format!("format = \"json\" # {}\n", file.path().display())),
        "{printed}"
    );
}

#[test]
fn the_environment_names_the_file_and_the_flag_wins() {
    let (named, flagged) = (file("data_dir = \"/named\""), file("data_dir = \"/flagged\""));
    let path = named.path().to_str().expect("a path in UTF-8");
    let (config, _) = load(&ServeFlags::default(), &[("STEPWELL_CONFIG", path)]).expect("named");
    assert_eq!(config.data_dir, PathBuf::from("/named"));
    let (config, _) = load(&with_file(&flagged), &[("STEPWELL_CONFIG", path)]).expect("flagged");
    assert_eq!(config.data_dir, PathBuf::from("/flagged"));
}

/// A value for each kind that is not the default of any setting.
/// A file with a connection string.
fn uri_file() -> &'static Path {
    static FILE: std::sync::OnceLock<tempfile::NamedTempFile> = std::sync::OnceLock::new();
    FILE.get_or_init(|| file("mongodb://eve:hunter2@h:27017\n")).path()
}

/// All settings that can be set together: the connection string is in its file.
fn together() -> impl Iterator<Item = &'static Setting> {
    settings().iter().filter(|setting| setting.key != "mongodb.uri")
}

fn sample(setting: &Setting) -> String {
    match setting.kind {
        Kind::Address => format!("127.0.0.1:{}", 7000 + setting.key.len()),
        Kind::File if setting.key == "mongodb.uri_file" => uri_file().display().to_string(),
        Kind::Directory | Kind::File | Kind::Text(_) => "other".to_owned(),
        Kind::MongoUri => "mongodb://eve:hunter2@h:27017".to_owned(),
        Kind::Url => "https://s3.example.org".to_owned(),
        Kind::Endpoint => "http://localhost:4317".to_owned(),
        Kind::LogFilter => "warn,stepwell::watch=trace".to_owned(),
        Kind::OneOf(words) => (*words.last().expect("words")).to_owned(),
        Kind::Bool => {
            (setting.key != "search.enabled" && setting.key != "mongodb.retry_writes").to_string()
        }
        Kind::Integer(..) => match setting.key {
            "limits.payload_bytes" => "70000".to_owned(),
            "limits.request_bytes" => "700000".to_owned(),
            "limits.metadata_bytes" | "writes.batch_bytes" | "limits.page_bytes" => {
                "66000".to_owned()
            }
            // A quarter of it has room for the largest message.
            "limits.process_bytes" => "70000000".to_owned(),
            "writes.queue_bytes" => "2000000".to_owned(),
            "mongodb.max_pool_size" => "61".to_owned(),
            _ => {
                let Kind::Integer(least, most) = setting.kind else { unreachable!() };
                (least + 4).min(most).to_string()
            }
        },
        Kind::Seconds(_, most) => (most / 2.0 - 0.25).to_string(),
        Kind::Ratio => "0.5".to_owned(),
        Kind::SecondsList(..) => "0.5, 7".to_owned(),
        Kind::Networks(_) => "10.0.0.0/8,fd00::/8".to_owned(),
    }
}

/// Of these one at a time.
const EITHER: [&str; 2] = ["auth.oidc.jwks_uri", "auth.oidc.jwks_file"];

/// What some settings need beside them, which has its place in the file only.
const LISTED: &str =
    "[[auth.oidc.rules]]\nclaim = \"groups\"\nvalue = \"all\"\nrole = \"viewer\"\napps = [\"*\"]\n";

#[test]
fn every_setting_is_reachable_by_every_name() {
    for left_out in EITHER {
        let all: Vec<&Setting> = together().filter(|one| one.key != left_out).collect();
        reachable_by_every_name(&all);
    }
}

fn reachable_by_every_name(settings: &[&'static Setting]) {
    let lists = file(LISTED);
    let by_variable: Vec<(String, String)> =
        settings.iter().map(|setting| (setting.env.clone(), sample(setting))).collect();
    let pairs: Vec<(&str, &str)> =
        by_variable.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    let (from_environment, _) = load(&with_file(&lists), &pairs).expect("environment");

    let line: Vec<String> = ["serve".to_owned(), format!("--config={}", lists.path().display())]
        .into_iter()
        .chain(settings.iter().map(|setting| format!("--{}={}", setting.flag, sample(setting))))
        .collect();
    let matches = ServeFlags::augment_args(Command::new("serve")).get_matches_from(line);
    let flags = ServeFlags::from_arg_matches(&matches).expect("flags");
    let (from_flags, _) = load(&flags, &[]).expect("flags");

    let mut text = String::new();
    let mut section = "";
    for setting in settings {
        let (part, name) = setting.key.rsplit_once('.').unwrap_or(("", setting.key));
        if part != section {
            section = part;
            text.push_str(&format!("[{part}]\n"));
        }
        let value = setting.kind.parse(&sample(setting)).expect("a good sample");
        text.push_str(&format!("{name} = {value}\n"));
    }
    text.push_str(LISTED);
    let (from_file, _) = load(&with_file(&file(&text)), &[]).expect("file");

    for (config, layer) in
        [(&from_environment, "environment"), (&from_flags, "flags"), (&from_file, "file")]
    {
        for setting in settings {
            let value = config.value(setting.key);
            assert!(value.is_some(), "{} by {layer}", setting.key);
            assert_ne!(value, Config::default().value(setting.key), "{} by {layer}", setting.key);
        }
        let without_origins = Config { origins: BTreeMap::new(), ..config.clone() };
        assert_eq!(
            without_origins,
            Config { origins: BTreeMap::new(), ..from_file.clone() },
            "{layer}"
        );
    }

    // And nothing is settable that the table does not know.
    fn leaves(prefix: &str, value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Table(table) => {
                for (name, value) in table {
                    let key =
                        if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
                    leaves(&key, value, found);
                }
            }
            _ => found.push(prefix.to_owned()),
        }
    }
    let mut found = Vec::new();
    leaves("", &Value::try_from(&from_file).expect("TOML"), &mut found);
    let mut known: Vec<&str> = settings.iter().map(|setting| setting.key).collect();
    // Read from its file, and from the lists.
    known.extend(["mongodb.uri", OIDC_RULES]);
    found.sort();
    known.sort_unstable();
    assert_eq!(found, known);
}

#[test]
fn names_do_not_collide() {
    let mut names: Vec<&str> = settings().iter().map(|setting| setting.env.as_str()).collect();
    names.extend(NOT_OURS);
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), count);
    for name in names {
        assert!(name.starts_with(ENV_PREFIX));
        // What Kubernetes injects for services called stepwell, stepwell-http, stepwell-mongodb, ...
        assert!(!name.ends_with("_PORT") && !name.ends_with("_SERVICE_HOST"), "{name}");
    }
}

#[test]
fn unknown_keys_are_refused_by_name() {
    for (text, key, suggestion) in [
        ("lisen = \"127.0.0.1:1\"", "lisen", Some("listen")),
        ("[log]\nlevle = \"info\"", "log.levle", Some("log.level")),
        ("[mongo]\nuri = \"mongodb://h\"", "mongo", Some("mongodb")),
        ("[mongdb]\nuri = \"mongodb://h\"", "mongdb", Some("mongodb")),
        ("[limits]\nwhatever_it_may_be = 1", "limits.whatever_it_may_be", None),
        ("log = 3", "log", Some("log.level")),
        ("[listen]\nport = 3", "", None),
    ] {
        let file = file(text);
        let error = load(&with_file(&file), &[]).expect_err(text);
        assert_eq!(error.problems.len(), 1, "{error}");
        match &error.problems[0] {
            Problem::UnknownKey { key: named, suggestion: near, .. } => {
                assert_eq!(named, key, "{text}");
                if key != "log" {
                    assert_eq!(near.as_deref(), suggestion, "{text}");
                }
                assert!(error.to_string().contains(&format!("unknown key {key}")), "{error}");
            }
            Problem::BadValue { key: "listen", .. } => assert_eq!(key, ""),
            other => panic!("{text}: {other:?}"),
        }
    }
}

#[test]
fn unknown_variables_are_warnings() {
    let (_, warnings) = load(
        &ServeFlags::default(),
        &[
            ("STEPWELL_SERVICE_HOST", "10.0.0.1"),
            ("STEPWELL_LISTN", "127.0.0.1:1"),
            ("STEPWELL_TEST_MONGOD", "x"),
            ("STEPWELL_SERVER", "x"),
            ("STEPWELL_CI_CACHE", "x"),
            ("OTHER", "x"),
        ],
    )
    .expect("only warnings");
    assert_eq!(
        warnings,
        [
            Warning::UnknownVariable {
                name: "STEPWELL_LISTN".to_owned(),
                suggestion: Some("STEPWELL_LISTEN".to_owned())
            },
            Warning::UnknownVariable { name: "STEPWELL_SERVICE_HOST".to_owned(), suggestion: None },
        ]
    );
    assert!(warnings[0].to_string().contains("did you mean STEPWELL_LISTEN?"), "{}", warnings[0]);
}

#[test]
fn bad_values_name_key_value_and_bound() {
    for (name, value, said) in [
        (
            "STEPWELL_LISTEN",
            "50051",
            "listen = \"50051\" (environment STEPWELL_LISTEN): expected an IP address",
        ),
        (
            "STEPWELL_LOG_FORMAT",
            "xml",
            "log.format = \"xml\" (environment STEPWELL_LOG_FORMAT): expected one of: text, json",
        ),
        (
            "STEPWELL_LOG_LEVEL",
            "loud",
            "log.level = \"loud\" (environment STEPWELL_LOG_LEVEL): expected error, warn",
        ),
        (
            "STEPWELL_LIMITS_PAGE_RECORDS",
            "1001",
            "limits.page_records = \"1001\" (environment STEPWELL_LIMITS_PAGE_RECORDS): expected a whole number from 1 to 1000",
        ),
        ("STEPWELL_LIMITS_PAGE_RECORDS", "ten", "expected a whole number from 1 to 1000"),
        ("STEPWELL_WATCH_KEEPALIVE_SECONDS", "0", "expected seconds from 0.05 to 3600"),
        ("STEPWELL_WATCH_KEEPALIVE_SECONDS", "NaN", "expected seconds"),
        ("STEPWELL_TELEMETRY_SAMPLE_RATIO", "2", "expected a number from 0 to 1"),
        ("STEPWELL_TELEMETRY_OTLP_ENDPOINT", "https://c:4317", "expected a URL"),
        ("STEPWELL_TELEMETRY_OTLP_ENDPOINT", "http://", "expected a URL"),
        ("STEPWELL_MONGODB_RETRY_WRITES", "maybe", "expected true or false"),
        (
            "STEPWELL_MONGODB_URI",
            "hunter2",
            "mongodb.uri = (hidden) (environment STEPWELL_MONGODB_URI): expected a connection string",
        ),
        ("STEPWELL_SHUTDOWN_STREAMS_SECONDS", "6", "expected seconds from 0 to 5"),
    ] {
        let error = load(&ServeFlags::default(), &[(name, value)]).expect_err(value);
        assert!(error.to_string().contains(said), "{error}\nshould say: {said}");
    }
}

#[test]
fn all_problems_come_at_once() {
    let file = file("listen = 5\ncolour = \"red\"\n");
    let error =
        load(&with_file(&file).with("log.format", "xml"), &[("STEPWELL_LOG_LEVEL", "loud")])
            .expect_err("four problems");
    assert_eq!(error.problems.len(), 4, "{error}");
    assert_eq!(error.to_string().lines().count(), 4);
}

#[test]
fn conflicts_are_refused() {
    for (pairs, said) in [
        (
            &[
                ("STEPWELL_SHUTDOWN_DEADLINE_SECONDS", "2"),
                ("STEPWELL_SHUTDOWN_STREAMS_SECONDS", "3"),
            ][..],
            "shutdown.streams_seconds = 3: must not exceed shutdown.deadline_seconds = 2",
        ),
        (
            &[("STEPWELL_LIMITS_METADATA_BYTES", "4194304")][..],
            "limits.payload_bytes = 6291456: input, output",
        ),
        (
            &[("STEPWELL_LIMITS_REQUEST_BYTES", "1000000")][..],
            "must not exceed limits.request_bytes",
        ),
        (
            &[("STEPWELL_WRITES_QUEUE_BYTES", "1048576")][..],
            "writes.queue_bytes = 1048576: must be at least limits.request_bytes",
        ),
        (
            &[("STEPWELL_MONGODB_MAX_POOL_SIZE", "5"), ("STEPWELL_MONGODB_MIN_POOL_SIZE", "6")][..],
            "mongodb.min_pool_size = 6",
        ),
        (&[("STEPWELL_MONGODB_DATABASE", "a.b")][..], "mongodb.database = \"a.b\""),
        (&[("STEPWELL_HTTP_LISTEN", "127.0.0.1:50051")][..], "http.listen"),
    ] {
        let error = load(&ServeFlags::default(), pairs).expect_err(said);
        assert!(error.to_string().contains(said), "{error}\nshould say: {said}");
    }
}

#[test]
fn files_that_cannot_be_used() {
    let flags = ServeFlags { config: Some("/does/not/exist.toml".into()), ..ServeFlags::default() };
    let error = load(&flags, &[]).expect_err("no file").to_string();
    assert!(
        error.starts_with("configuration file /does/not/exist.toml cannot be read: "),
        "{error}"
    );
    let file = file("# first\n[mongodb]\nuri = mongodb://eve:hunter2@h\n");
    let error = load(&with_file(&file), &[]).expect_err("no TOML").to_string();
    assert!(error.contains("is not valid TOML: line 3"), "{error}");
    assert!(!error.contains("hunter2"), "{error}");
}

#[test]
fn secrets_stay_hidden_and_reach_the_store() {
    let uri = "mongodb://eve:hunter2@h:27017/?replicaSet=rs";
    let (config, warnings) =
        load(&ServeFlags::default().with("mongodb.uri", uri).with("data_dir", "/d"), &[])
            .expect("MongoDB");
    match config.store() {
        StoreChoice::Mongodb { uri: secret, settings } => {
            assert_eq!(secret.expose(), uri);
            assert_eq!(settings.database, "ai_apps");
        }
        StoreChoice::Sqlite { .. } => panic!("a URI selects MongoDB"),
    }
    for shown in [config.printable(), format!("{config:?}")] {
        assert!(!shown.contains("hunter2") && shown.contains("eve:***@h:27017"), "{shown}");
    }
    assert_eq!(warnings.len(), 1);
    assert_eq!(
        warnings[0].to_string(),
        "data_dir (flag --data-dir) has no effect: mongodb.uri selects MongoDB"
    );
}

#[test]
fn the_connection_string_may_be_in_a_file() {
    let path = uri_file().display().to_string();
    let flags = ServeFlags::default().with("mongodb.uri_file", &path);
    let (config, warnings) = load(&flags, &[]).expect("a good file");
    assert_eq!(warnings, []);
    let StoreChoice::Mongodb { uri, .. } = config.store() else { panic!("no MongoDB") };
    assert_eq!(uri.expose(), "mongodb://eve:hunter2@h:27017");
    let printed = config.printable();
    assert!(!printed.contains("hunter2") && printed.contains(&path), "{printed}");
    assert_eq!(config.secret_files(), [("mongodb.uri", uri_file().to_owned())]);

    let both = [("STEPWELL_MONGODB_URI", "mongodb://h")];
    let refused = |flags: &ServeFlags, pairs: &[(&str, &str)]| {
        let error = load(flags, pairs).expect_err("it is refused");
        error.to_string()
    };
    let told = refused(&flags, &both);
    assert!(told.contains("mongodb.uri_file") && told.contains("with mongodb.uri:"), "{told}");
    for (content, why) in [
        ("", "is empty"),
        (" \n", "is empty"),
        ("postgres://eve:hunter2@h", "one connection string"),
        ("mongodb://a\nmongodb://eve:hunter2@b", "one connection string"),
    ] {
        let bad = file(content);
        let flags =
            ServeFlags::default().with("mongodb.uri_file", bad.path().display().to_string());
        let told = refused(&flags, &[]);
        assert!(told.contains(why) && !told.contains("hunter2"), "{content:?}: {told}");
    }
    let flags = ServeFlags::default().with("mongodb.uri_file", "/nowhere/at/all");
    let told = refused(&flags, &[]);
    assert!(told.contains("cannot be read") && told.contains("/nowhere/at/all"), "{told}");
    let in_the_file = file("[mongodb]\nuri = \"mongodb://eve:hunter2@h\"\n");
    let (config, _) = load(&with_file(&in_the_file), &[]).expect("a good file");
    assert_eq!(config.secret_files(), [("mongodb.uri", in_the_file.path().to_owned())]);
}

#[test]
fn what_is_printed_can_be_read_again() {
    let flags = ServeFlags::default()
        .with("listen", "localhost:7")
        .with("watch.keepalive_seconds", "0.5")
        .with("telemetry.otlp_endpoint", "http://127.0.0.1:4317");
    let (config, _) = load(&flags, &[]).expect("a good configuration");
    let (again, _) = load(&with_file(&file(&config.printable())), &[]).expect("its own print");
    for setting in settings() {
        assert_eq!(again.value(setting.key), config.value(setting.key), "{}", setting.key);
    }
}

#[test]
fn empty_variables_are_not_set() {
    let (config, warnings) =
        load(&ServeFlags::default(), &[("STEPWELL_MONGODB_URI", ""), ("STEPWELL_CONFIG", "")])
            .expect("defaults");
    assert_eq!(config, Config::default());
    assert_eq!(warnings, []);
}

#[test]
fn unknown_flags_are_refused_and_the_help_knows_the_variables() {
    let command = || ServeFlags::augment_args(Command::new("serve"));
    let error = command().try_get_matches_from(["serve", "--lisen", "x"]).expect_err("unknown");
    assert_eq!(error.kind(), clap::error::ErrorKind::UnknownArgument);
    assert!(error.to_string().contains("--lisen"), "{error}");
    let help = command().render_help().to_string();
    assert!(
        help.contains("STEPWELL_MONGODB_URI") && !help.contains("--limits-page-bytes"),
        "{help}"
    );
    let help = command().render_long_help().to_string();
    assert!(help.contains("--limits-page-bytes"), "{help}");
}

#[test]
fn the_reference_table_has_every_setting() {
    let table = super::super::reference_table();
    assert_eq!(table.lines().count(), settings().len() + 2);
    assert!(table.contains("| `http.listen` | `STEPWELL_HTTP_LISTEN` |  | "), "{table}");
}
