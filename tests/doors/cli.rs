//! The client commands over TLS.

use std::process::{Command, Output};

use stepwell::auth::key::Key;
use stepwell::config::{AuthMode, CertificateRule, ClientAuth};

use crate::Encrypted;
use crate::support::authority::Authority;
use crate::support::run;

/// What a command did, without anything of the environment but this.
async fn stepwell(args: Vec<String>, key: Option<&str>) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_stepwell"));
    command.args(&args).env_clear();
    if let Some(key) = key {
        command.env("STEPWELL_KEY", key);
    }
    let ran = tokio::task::spawn_blocking(move || command.output()).await.expect("it ran");
    let Output { status, stdout, stderr } = ran.expect("it starts");
    let text = |bytes| String::from_utf8(bytes).expect("text");
    (status.code(), text(stdout), text(stderr))
}

#[test]
fn client_commands_speak_tls_and_show_what_they_are_given() {
    run(async {
        let (clients, admin) = (Authority::new("clients"), Key::generate().expect("randomness"));
        let e = Encrypted::start(|config, papers| {
            config.auth.mode = Some(AuthMode::Required);
            config.auth.admin_key_file = Some(papers.write("admin-keys", admin.expose()));
            config.tls.client_ca_file = Some(papers.write("clients.pem", &clients.pem()));
            config.tls.client_auth = Some(ClientAuth::Optional);
            config.auth.certificates = vec![CertificateRule {
                san: "viewer.example".to_owned(),
                role: "viewer".to_owned(),
                apps: vec!["*".to_owned()],
                reveal: false,
            }];
        })
        .await;
        let shown = clients.issue(&["viewer.example"]);
        let path = |name: &str| e.papers.path(name).display().to_string();
        e.papers.write("ca.pem", &e.authority.pem());
        e.papers.write("other.pem", &Authority::new("others").pem());
        e.papers.write("viewer.pem", &shown.cert);
        e.papers.write("viewer.key", &shown.key);
        e.papers.write("key", admin.expose());
        let server = format!("https://localhost:{}", e.server.address().port());
        let list = |more: &[String]| {
            let words = ["executions", "list", "--server"].map(str::to_owned);
            [&words[..], std::slice::from_ref(&server), more].concat()
        };
        let flag = |name: &str, file: &str| [format!("--{name}"), path(file)].to_vec();
        let ca = flag("tls-ca", "ca.pem");
        let certificate = [flag("tls-cert", "viewer.pem"), flag("tls-key", "viewer.key")].concat();

        // The key of the environment, that of a file, and a certificate.
        let (code, _, err) = stepwell(list(&ca), Some(admin.expose())).await;
        assert_eq!(code, Some(0), "{err}");
        let (code, _, err) =
            stepwell(list(&[ca.clone(), flag("key-file", "key")].concat()), None).await;
        assert_eq!(code, Some(0), "{err}");
        let (code, _, err) = stepwell(list(&[&ca[..], &certificate].concat()), None).await;
        assert_eq!(code, Some(0), "{err}");
        let (code, _, err) = stepwell(list(&ca), None).await;
        assert!(
            code == Some(1) && err.contains("this server needs a credential"),
            "{code:?} {err}"
        );

        // Who is not believed is told why.
        for authorities in [vec![], flag("tls-ca", "other.pem")] {
            let (code, _, err) = stepwell(list(&authorities), Some(admin.expose())).await;
            assert!(code != Some(0) && err.contains("certificate"), "{code:?} {err}");
            assert!(!err.contains(admin.expose()), "{err}");
        }
        // And what cannot be is said before anybody is asked.
        let plain = format!("http://localhost:{}", e.server.address().port());
        for (args, said) in [
            (list(&flag("tls-ca", "missing")), "--tls-ca"),
            (list(&flag("tls-ca", "viewer.key")), "has no certificate"),
            (list(&[&ca[..], &flag("tls-cert", "viewer.pem")].concat()), "--tls-key"),
            (
                list(
                    &[&ca[..], &flag("tls-cert", "viewer.pem"), &flag("tls-key", "ca.pem")]
                        .concat(),
                ),
                "--tls-key",
            ),
            (
                ["executions", "list", "--server", &plain, "--tls-ca", &path("ca.pem")]
                    .map(str::to_owned)
                    .to_vec(),
                "https://",
            ),
        ] {
            let (code, _, err) = stepwell(args, Some(admin.expose())).await;
            assert_eq!(code, Some(2), "{err}");
            assert!(err.contains(said), "{err}\nshould say: {said}");
        }
    });
}
