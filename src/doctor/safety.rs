//! Who could do what they should not: in the database, on the way to it, and with the files of this machine.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use super::finding::{Finding, State};
use crate::config::{Config, Safety};
use crate::store::inspect::{Access, Facts};

/// Privileges and keys that are named.
const NAMED: usize = 5;
/// Others than the owner and the group may read or write a file.
const OTHERS: u32 = 0o006;

/// What the facts and the configuration mean.
pub fn judge(facts: &Facts, config: &Config) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Some(safety) = config.database_safety() {
        if let Some(access) = &facts.access {
            findings.extend(privileges(access, &safety, &config.mongodb.database));
        }
        findings.push(encryption(&safety));
    }
    findings.extend(files(config));
    if !facts.idle_keys.is_empty() {
        findings.push(Finding::to_do(
            "idle keys",
            format!("nobody has used these keys for 90 days: {}", some(&facts.idle_keys)),
            "revoke those that are not needed: stepwell keys revoke ID",
        ));
    }
    findings
}

/// The first few, and how many more there are.
fn some(all: &[String]) -> String {
    let named = all.iter().take(NAMED).cloned().collect::<Vec<_>>().join("; ");
    match all.len().saturating_sub(NAMED) {
        0 => named,
        more => format!("{named}; and {more} more"),
    }
}

fn privileges(access: &Access, safety: &Safety, database: &str) -> Vec<Finding> {
    let subject = "privileges";
    let make = format!(
        "stepwell doctor --print-role prints the command that makes the role which is needed; run it in the database \
         {database} and give it to the user of the server, in place of what it has"
    );
    let Some(user) = &access.user else {
        let says = "the database asks nobody who they are: whoever reaches it may read, change and delete everything";
        return vec![match safety.elsewhere {
            true => Finding::to_do(
                subject,
                says,
                format!("turn on authentication (security.authorization); {make}"),
            ),
            false => Finding::new(subject, State::Note, says),
        }];
    };
    let mut findings = Vec::new();
    if !access.missing.is_empty() {
        let says = format!("{user} may not: {}", some(&access.missing));
        findings.push(Finding::to_do("missing privileges", says, make.clone()));
    }
    if !access.excess.is_empty() {
        let says = format!("{user} may more than is needed: {}", some(&access.excess));
        findings.push(Finding::to_do("excess privileges", says, make));
    }
    if findings.is_empty() {
        findings.push(Finding::new(
            subject,
            State::Well,
            format!("{user} may what is needed and no more"),
        ));
    }
    findings
}

fn encryption(safety: &Safety) -> Finding {
    let subject = "encryption";
    if let Some(option) = safety.unverified {
        return Finding::to_do(
            subject,
            format!("{option} is set: whoever answers at the address is taken for the database"),
            format!(
                "remove {option} from the connection string, and name the authority with tlsCAFile"
            ),
        );
    }
    match (safety.tls, safety.elsewhere) {
        (true, _) => {
            Finding::new(subject, State::Well, "the connection to the database is encrypted")
        }
        (false, false) => Finding::new(subject, State::Well, "the database is on this machine"),
        (false, true) => Finding::to_do(
            subject,
            "the connection to the database is not encrypted: who is on the way reads everything, and changes it",
            "give the database a certificate, and set tls=true in the connection string",
        ),
    }
}

fn files(config: &Config) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (key, path) in config.secret_files() {
        // One that is not there is told by who needs it.
        let Ok(mode) = mode(&path) else { continue };
        if mode & OTHERS != 0 {
            findings.push(Finding::to_do(
                format!("file of {key}"),
                format!(
                    "every user of this machine may read or change {} (mode {mode:04o})",
                    path.display()
                ),
                format!("chmod o-rw {}", path.display()),
            ));
        }
    }
    findings
}

fn mode(path: &Path) -> std::io::Result<u32> {
    Ok(std::fs::metadata(path)?.permissions().mode() & 0o7777)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(missing: &[&str], excess: &[&str]) -> Access {
        let owned = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        Access {
            user: Some("me of admin".to_owned()),
            missing: owned(missing),
            excess: owned(excess),
        }
    }

    /// Subjects and states.
    fn told(findings: &[Finding]) -> Vec<(&str, State)> {
        findings.iter().map(|finding| (finding.subject.as_str(), finding.state)).collect()
    }

    #[test]
    fn privileges_are_told_where_they_are_not_the_role() {
        let here = Safety::default();
        let there = Safety { elsewhere: true, ..Safety::default() };
        let nobody = Access::default();
        assert_eq!(told(&privileges(&nobody, &here, "d")), [("privileges", State::Note)]);
        assert_eq!(told(&privileges(&nobody, &there, "d")), [("privileges", State::ToDo)]);
        assert_eq!(
            told(&privileges(&access(&[], &[]), &there, "d")),
            [("privileges", State::Well)]
        );
        let both = privileges(&access(&["a"], &["b", "c", "d", "e", "f", "g"]), &here, "d");
        assert_eq!(
            told(&both),
            [("missing privileges", State::ToDo), ("excess privileges", State::ToDo)]
        );
        assert!(both[1].says.ends_with("f; and 1 more"), "{}", both[1].says);
        assert!(both[0].advice.contains("--print-role"));
    }

    #[test]
    fn a_connection_is_safe_where_it_is_encrypted_and_verified() {
        for (uri, state) in [
            ("mongodb://localhost", State::Well),
            ("mongodb://db", State::ToDo),
            ("mongodb://db/?tls=true", State::Well),
            ("mongodb://db/?tls=true&tlsInsecure=true", State::ToDo),
            ("mongodb://localhost/?tls=true&tlsInsecure=true", State::ToDo),
        ] {
            assert_eq!(encryption(&Safety::of(uri)).state, state, "{uri}");
        }
    }

    #[test]
    fn a_file_that_all_may_read_is_told() {
        let dir = tempfile::tempdir().expect("a temp dir");
        let path = dir.path().join("keys");
        std::fs::write(&path, "secret").expect("written");
        let mut config = Config::default();
        config.auth.admin_key_file = Some(path.clone());
        for (mode, expected) in [(0o600, 0), (0o640, 0), (0o644, 1), (0o602, 1)] {
            let permissions = std::fs::Permissions::from_mode(mode);
            std::fs::set_permissions(&path, permissions).expect("changed");
            assert_eq!(files(&config).len(), expected, "{mode:o}");
        }
        config.auth.admin_key_file = Some(dir.path().join("none"));
        assert!(files(&config).is_empty());
    }
}
