//! The built binary as an operator runs it: what it needs, what it opens, and how it ends.

#![expect(clippy::disallowed_methods, reason = "tests measure real time")]

#[path = "support/mod.rs"]
#[expect(dead_code, reason = "every test binary uses a part of the harness")]
mod support;

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use stepwell::proto::*;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use support::authority::{Authority, HERE};
use support::backend::{Backend, Kind};
use support::client::*;
use support::process::{Guarded, free_port};
use support::*;

const STEPWELL: &str = env!("CARGO_BIN_EXE_stepwell");

/// A running `stepwell serve` in a folder of its own.
struct Serving {
    process: Guarded,
    client: Client,
    address: String,
    dir: TempDir,
}

impl Serving {
    /// Starts it with these arguments, and these variables in front of nothing else of ours.
    async fn start(args: &[&str], variables: &[(&str, &str)]) -> Serving {
        let dir = TempDir::with_prefix("stepwell-binary-").expect("a temp dir");
        Serving::start_in(dir, args, variables).await
    }

    async fn start_in(dir: TempDir, args: &[&str], variables: &[(&str, &str)]) -> Serving {
        let address = format!("127.0.0.1:{}", free_port());
        // `env` sets the folder and the variables, so that the process is nobody's but the guard's.
        let mut all = vec!["-C".to_owned(), dir.path().display().to_string()];
        all.extend(variables.iter().map(|(name, value)| format!("{name}={value}")));
        all.extend([STEPWELL, "serve", "--listen", &address].map(str::to_owned));
        all.extend(args.iter().map(|arg| (*arg).to_owned()));
        let log = dir.path().join("server.log");
        let process = Guarded::start(Path::new("/usr/bin/env"), &all, &log, None);
        let client = Client::of(&address);
        let serving = Serving { process, client, address, dir };
        eventually("the health service says SERVING", async || {
            let mut health = HealthClient::new(serving.client.channel.clone());
            let answer = health.check(HealthCheckRequest::default()).await.ok()?;
            (answer.into_inner().status() == ServingStatus::Serving).then_some(())
        })
        .await;
        serving
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("server.log")).expect("the log can be read")
    }

    /// Ends it with SIGTERM; its exit code and how long it took.
    fn terminate(&mut self) -> (i32, Duration) {
        let began = Instant::now();
        self.process.signal(Signal::SIGTERM);
        let code = self.process.wait(Duration::from_secs(25));
        (code, began.elapsed())
    }
}

fn stepwell(args: &[&str]) -> Output {
    let mut command = Command::new(STEPWELL);
    command.args(args);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("STEPWELL_") {
            command.env_remove(name);
        }
    }
    command.output().expect("the binary runs")
}

fn text_of(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

#[test]
fn serve_needs_nothing_configured() {
    run(async {
        let dir = TempDir::with_prefix("stepwell-binary-").expect("a temp dir");
        let data = dir.path().join("stepwell-data");
        std::fs::create_dir(&data).expect("a folder");
        std::fs::write(data.join("somebody's notes.txt"), "not ours").expect("a file");
        let began = Instant::now();
        let mut serving = Serving::start_in(dir, &[], &[]).await;
        assert!(began.elapsed() < Duration::from_secs(5), "ready after {:?}", began.elapsed());
        serving.client.create("e").await;
        assert!(data.join("stepwell.db").is_file(), "the store is under ./stepwell-data");
        let notes = std::fs::read_to_string(data.join("somebody's notes.txt"));
        assert_eq!(notes.expect("other files are left alone"), "not ours");
        let info = serving.client.get_server_info(GetServerInfoRequest {}).await;
        assert_eq!(info.store, "sqlite");
        assert_eq!(serving.terminate().0, 0);
    });
}

#[test]
fn a_data_directory_serves_one_server_and_survives_it() {
    run(async {
        let data = TempDir::with_prefix("stepwell-data-").expect("a temp dir");
        let made = data.path().join("made");
        let path = made.display().to_string();
        let args = ["--data-dir", path.as_str()];
        let mut first = Serving::start(&args, &[]).await;
        first.client.create("e").await;
        // Nobody else on the machine reads what is in it.
        let mode = |path: std::path::PathBuf| {
            std::fs::metadata(path).expect("it is there").permissions().mode() & 0o777
        };
        assert_eq!(mode(made.clone()), 0o700);
        for file in ["stepwell.db", "stepwell.db-wal", "stepwell.db-shm"] {
            assert_eq!(mode(made.join(file)), 0o600, "{file}");
        }
        let port = format!("127.0.0.1:{}", free_port());
        let second = stepwell(&["serve", "--listen", &port, "--data-dir", &path]);
        assert_eq!(second.status.code(), Some(2), "two servers on one data directory");
        assert!(text_of(&second).contains("in use"), "{}", text_of(&second));
        assert_eq!(first.terminate().0, 0);
        let again = Serving::start(&args, &[]).await;
        assert_eq!(again.client.execution("e").await.execution_id, "e");
    });
}

#[test]
fn a_uri_in_the_environment_selects_mongodb() {
    run(async {
        let b = Backend::fresh(Kind::Mongodb);
        let variables = [("STEPWELL_MONGODB_URI", b.uri())];
        let args = ["--mongodb-database", b.database_name()];
        let mut serving = Serving::start(&args, &variables).await;
        serving.client.create("e").await;
        let info = serving.client.get_server_info(GetServerInfoRequest {}).await;
        assert_eq!(info.store, "mongodb");
        let stored = b.executions().await.count_documents(mongodb::bson::doc! {}).await;
        assert_eq!(stored.expect("counted"), 1);
        assert!(!serving.dir.path().join("stepwell-data").exists(), "no embedded store beside it");
        assert_eq!(serving.terminate().0, 0);
        b.remove().await;
    });
}

#[test]
fn http_is_off_unless_given() {
    run(async {
        let off = Serving::start(&[], &[]).await;
        assert!(!off.log().contains("http.listen"), "{}", off.log());
        let http = format!("127.0.0.1:{}", free_port());
        let on = Serving::start(&["--http-listen", &http], &[]).await;
        let fetch = async |path: &str| {
            let mut stream = tokio::net::TcpStream::connect(&http).await.expect("it listens");
            let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await.expect("sent");
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.expect("answered");
            answer
        };
        on.client.create("e").await;
        let metrics = fetch("/metrics").await;
        assert!(metrics.starts_with("HTTP/1.1 200"), "{metrics}");
        assert!(metrics.contains("# HELP stepwell_"), "{metrics}");
    });
}

#[test]
fn sigterm_drains_and_exits_0() {
    run(async {
        let mut serving = Serving::start(&[], &[]).await;
        serving.client.create("e").await;
        let mut open = serving.client.watch(watch("e")).await;
        open.snapshot().await;
        let mut writers = tokio::task::JoinSet::new();
        for n in 0..50 {
            let client = serving.client.clone();
            writers.spawn(async move { client.try_start_step(start("e", n)).await });
        }
        let (code, took) = tokio::task::block_in_place(|| serving.terminate());
        assert_eq!(code, 0, "{}", serving.log());
        assert!(took < Duration::from_secs(20), "it took {took:?}");
        let status = open.broken().await;
        check_refusal(&status, Code::Unavailable, "SHUTTING_DOWN");
        // What was answered is there after the restart.
        let acknowledged: Vec<_> = writers.join_all().await.into_iter().flatten().collect();
        let Serving { dir, .. } = serving;
        let again = Serving::start_in(dir, &[], &[]).await;
        for step in acknowledged {
            let stored = again.client.step("e", step.step_id.expect("set")).await;
            assert_eq!(stored.revision, step.revision);
        }
    });
}

#[test]
fn client_commands_talk_to_any_server() {
    run(async {
        let serving = Serving::start(&[], &[]).await;
        serving.client.create("e-of-the-test").await;
        let list = ["executions", "list", "--server", &serving.address, "--output"];
        for form in ["table", "json"] {
            let output = tokio::task::block_in_place(|| stepwell(&[&list[..], &[form]].concat()));
            assert!(output.status.success(), "{}", text_of(&output));
            let shown = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(shown.contains("e-of-the-test"), "{shown}");
            // One JSON document a line.
            for line in shown.lines().filter(|_| form == "json") {
                let parsed: Result<serde_json::Value, _> = serde_json::from_str(line);
                assert!(parsed.is_ok(), "no JSON: {line}");
            }
        }
        let show = ["executions", "show", "nobody", "--server", &serving.address];
        let output = tokio::task::block_in_place(|| stepwell(&show));
        assert!(!output.status.success());
        assert!(output.stdout.is_empty(), "errors go to stderr");
    });
}

#[test]
fn what_is_misspelt_is_an_error_that_names_it() {
    let output = stepwell(&["serve", "--lisen", "127.0.0.1:0"]);
    assert!(!output.status.success());
    assert!(text_of(&output).contains("--lisen"), "{}", text_of(&output));
    let dir = TempDir::with_prefix("stepwell-binary-").expect("a temp dir");
    let file = dir.path().join("stepwell.toml");
    std::fs::write(&file, "[watch]\nkeepalive_secs = 3\n").expect("a file");
    let file = file.display().to_string();
    let output = stepwell(&["config", "--config", &file]);
    assert!(!output.status.success());
    assert!(text_of(&output).contains("keepalive_secs"), "{}", text_of(&output));
}

#[test]
fn config_prints_what_is_in_force_without_secrets() {
    let output = Command::new(STEPWELL)
        .args(["config", "--listen", "127.0.0.1:7"])
        .env("STEPWELL_MONGODB_URI", "mongodb://ann:geheim@db.example/?authSource=admin")
        .env("STEPWELL_LISTEN", "127.0.0.1:6")
        .env("STEPWELL_ARTIFACTS_S3_ENDPOINT", "https://ann:geheim@s3.example")
        .env("STEPWELL_TELEMETRY_OTLP_ENDPOINT", "http://ann:geheim@otlp.example:4317")
        .env("STEPWELL_INJECTED_BY_SOMEBODY", "1")
        .output()
        .expect("the binary runs");
    assert!(output.status.success(), "{}", text_of(&output));
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(printed.contains("127.0.0.1:7"), "flags win: {printed}");
    assert!(!text_of(&output).contains("geheim"), "{}", text_of(&output));
    let warned = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        warned.contains("STEPWELL_INJECTED_BY_SOMEBODY"),
        "an unknown variable is a warning: {warned}"
    );
}

#[test]
fn bench_says_where_the_load_generator_is() {
    for args in [&["bench"][..], &["bench", "track", "--clients", "1", "--help"]] {
        let ran = stepwell(args);
        assert_eq!(ran.status.code(), Some(2), "{ran:?}");
        let message = String::from_utf8_lossy(&ran.stderr);
        assert!(message.contains("cargo run --release -p stepwell-bench --"), "{message}");
    }
    let help = stepwell(&["--help"]);
    assert!(!String::from_utf8_lossy(&help.stdout).contains("bench"), "{help:?}");
}

/// Every way in which a server would let in whom nobody meant to let in, and the settings that its refusal names.
#[test]
fn what_lets_in_whom_nobody_meant_is_refused_before_a_port_opens() {
    let dir = TempDir::with_prefix("stepwell-doors-").expect("a temp dir");
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).expect("the file can be written");
        path.display().to_string()
    };
    let key = stepwell::auth::key::Key::generate().expect("randomness");
    let good = file("good", key.expose());
    let (empty, odd) = (file("empty", "\n# no key\n"), file("odd", "swk_nonsense\n"));
    let missing = dir.path().join("missing").display().to_string();
    let port = free_port();
    let (wide, here) = (format!("0.0.0.0:{port}"), format!("127.0.0.1:{port}"));
    let required = |file: &str| {
        vec!["--auth-mode=required".to_owned(), format!("--auth-admin-key-file={file}")]
    };
    let on = |listen: &str, args: Vec<String>| [vec![format!("--listen={listen}")], args].concat();
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let authority = Authority::new("servers");
    let (server, other) = (authority.issue(HERE), authority.issue(HERE));
    let (ca, crl) = (file("ca", &authority.pem()), file("crl", &authority.revoke(&[])));
    let numbered = std::cell::Cell::new(0);
    let another = |text: &str| {
        numbered.set(numbered.get() + 1);
        file(&format!("file-{}", numbered.get()), text)
    };
    let cert = |name: &str, text: &str| format!("--tls-cert-file={}", file(name, text));
    let tls = |cert: &str, key: &str, more: &[&str]| {
        let files = [
            "--tls-mode=on".to_owned(),
            format!("--tls-cert-file={}", another(cert)),
            format!("--tls-key-file={}", another(key)),
        ];
        [files.to_vec(), words(more)].concat()
    };
    const ISSUER: &str = "--auth-oidc-issuer=https://login.example";
    const AUDIENCE: &str = "--auth-oidc-audience=stepwell";
    let rules = "[[auth.oidc.rules]]\nclaim = \"groups\"\nvalue = \"all\"\nrole = \"viewer\"\napps = [\"*\"]\n".to_owned();
    let certificates =
        "[[auth.certificates]]\nsan = \"app.example\"\nrole = \"viewer\"\napps = [\"*\"]\n"
            .to_owned();
    let with = |text: &str, args: &[String]| {
        on(&here, [vec![format!("--config={}", another(text))], args.to_vec()].concat())
    };
    for (args, named) in [
        (on(&wide, vec![]), &["auth.mode", "tls.mode"][..]),
        (on("[::]:0", vec![]), &["auth.mode", "tls.mode"]),
        (on(&wide, words(&["--auth-mode=off"])), &["auth.mode", "tls.mode"]),
        (on(&wide, words(&["--tls-mode=off"])), &["auth.mode", "tls.mode"]),
        (on(&here, words(&["--auth-mode=maybe"])), &["auth.mode"]),
        (on(&here, words(&["--tls-mode=on"])), &["tls.mode", "tls.cert_file", "tls.key_file"]),
        (
            on(&here, tls(&server.cert, &other.key, &[])),
            &["tls.key_file", "not the key of the certificate in tls.cert_file"],
        ),
        (on(&here, tls("", &server.key, &[])), &["tls.cert_file", "is empty"]),
        (on(&here, tls(&server.cert, "\n", &[])), &["tls.key_file", "is empty"]),
        (on(&here, tls("x", &server.key, &[])), &["tls.cert_file", "has no certificate"]),
        (on(&here, tls(&server.cert, "x", &[])), &["tls.key_file", "has no private key"]),
        (on(&here, vec!["--tls-mode=on".to_owned(), cert("c", &server.cert)]), &["tls.key_file"]),
        (on(&here, vec![cert("c", &server.cert)]), &["tls.cert_file", "tls.mode"]),
        (
            on(&here, vec!["--tls-mode=off".to_owned(), cert("c", &server.cert)]),
            &["tls.cert_file", "tls.mode"],
        ),
        (on(&here, words(&["--tls-client-auth=required"])), &["tls.client_auth", "tls.mode"]),
        (
            on(&here, tls(&server.cert, &server.key, &["--tls-client-auth=required"])),
            &["tls.client_auth", "tls.client_ca_file"],
        ),
        (
            on(&here, tls(&server.cert, &server.key, &[&format!("--tls-client-crl-file={crl}")])),
            &["tls.client_crl_file", "tls.client_ca_file"],
        ),
        (
            on(
                &here,
                tls(&server.cert, &server.key, &[&format!("--tls-client-ca-file={missing}")]),
            ),
            &["tls.client_ca_file"],
        ),
        (
            on(
                &here,
                tls(
                    &server.cert,
                    &server.key,
                    &[
                        &format!("--tls-client-ca-file={ca}"),
                        &format!("--tls-client-crl-file={ca}"),
                    ],
                ),
            ),
            &["tls.client_crl_file", "has no revocation list"],
        ),
        (
            on(&here, words(&["--auth-mode=required"])),
            &["auth.mode", "auth.admin_key_file", "auth.oidc", "[[auth.certificates]]"],
        ),
        (on(&here, words(&[ISSUER])), &["auth.oidc.issuer", "auth.mode"]),
        (
            on(&here, [required(&good), words(&[ISSUER])].concat()),
            &["auth.oidc.audience", "[[auth.oidc.rules]]"],
        ),
        (
            on(&here, [required(&good), words(&[AUDIENCE])].concat()),
            &["auth.oidc.audience", "auth.oidc.issuer"],
        ),
        (
            on(&here, [required(&good), words(&["--auth-oidc-jwks-uri=https://x/keys"])].concat()),
            &["auth.oidc.jwks_uri", "auth.oidc.issuer"],
        ),
        (
            on(
                &here,
                [required(&good), words(&[AUDIENCE, "--auth-oidc-issuer=http://login.example"])]
                    .concat(),
            ),
            &["auth.oidc.issuer", "https"],
        ),
        (
            with(&rules, &[&required(&good)[..], &words(&[ISSUER])].concat()),
            &["auth.oidc.audience"],
        ),
        (
            with(
                &rules,
                &words(&[
                    ISSUER,
                    AUDIENCE,
                    "--auth-mode=required",
                    "--auth-oidc-jwks-uri=http://login.example/keys",
                ]),
            ),
            &["auth.oidc.jwks_uri", "https"],
        ),
        (
            with(
                &rules,
                &words(&[
                    ISSUER,
                    AUDIENCE,
                    "--auth-mode=required",
                    "--auth-oidc-jwks-uri=https://x/k",
                    "--auth-oidc-jwks-file=x",
                ]),
            ),
            &["auth.oidc.jwks_uri", "auth.oidc.jwks_file"],
        ),
        (
            with(
                &rules,
                &[
                    words(&[ISSUER, AUDIENCE, "--auth-mode=required"]),
                    vec![format!("--auth-oidc-jwks-file={missing}")],
                ]
                .concat(),
            ),
            &["auth.oidc.jwks_file"],
        ),
        (
            with(
                &rules,
                &[
                    words(&[ISSUER, AUDIENCE, "--auth-mode=required"]),
                    vec![format!("--auth-oidc-jwks-file={empty}")],
                ]
                .concat(),
            ),
            &["auth.oidc.jwks_file", "set of keys"],
        ),
        (with(&rules, &[]), &["auth.oidc.rules", "auth.mode"]),
        (with(&rules.replace("viewer", "boss"), &[]), &["auth.oidc.rules", "rule 1", "boss"]),
        (with(&rules.replace("apps", "app"), &[]), &["auth.oidc.rules", "rule 1", "app"]),
        (with(&rules.replace("[\"*\"]", "[\"a*b\"]"), &[]), &["auth.oidc.rules", "rule 1", "a*b"]),
        (with(&certificates, &required(&good)), &["auth.certificates", "tls.client_ca_file"]),
        (with(&certificates, &[]), &["auth.certificates", "auth.mode"]),
        (
            with(&certificates.replace("app.example", "*.example"), &required(&good)),
            &["auth.certificates", "rule 1", "*.example"],
        ),
        (
            on(&here, vec![format!("--auth-admin-key-file={good}")]),
            &["auth.admin_key_file", "auth.mode"],
        ),
        (on(&here, required(&missing)), &["auth.admin_key_file"]),
        (on(&here, required(dir.path().to_str().expect("a path"))), &["auth.admin_key_file"]),
        (on(&here, required(&empty)), &["auth.admin_key_file"]),
        (on(&here, required(&odd)), &["auth.admin_key_file", "line 1"]),
        (
            on(
                &here,
                [required(&good), words(&["--mongodb-uri=mongodb://db.example:27017"])].concat(),
            ),
            &["mongodb.uri", "credentials", "mongodb.trusted_network"],
        ),
        (
            on(
                &here,
                [required(&good), words(&["--mongodb-uri=mongodb://u:p@db.example:27017"])]
                    .concat(),
            ),
            &["mongodb.uri", "TLS", "mongodb.trusted_network"],
        ),
    ] {
        let data = dir.path().join("data").display().to_string();
        let mut all = vec!["serve".to_owned(), format!("--data-dir={data}")];
        all.extend(args.clone());
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        let output = stepwell(&all);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(78), "{args:?}: {said}");
        for name in named {
            assert!(said.contains(name), "{args:?} does not name {name}: {said}");
        }
        assert!(!said.contains("swk_") && !said.contains("PRIVATE"), "a key is shown: {said}");
        assert!(!dir.path().join("data").exists(), "{args:?}: nothing is opened");
    }
}
