//! The parts of the configuration that have no place in a variable or a flag: lists of tables in the file.

use serde::de::DeserializeOwned;
use toml::Value;

use super::RetentionRule;
use super::access::{CertificateRule, OidcRule};

pub const RETENTION_RULES: &str = "retention.rules";
pub const OIDC_RULES: &str = "auth.oidc.rules";
pub const CERTIFICATES: &str = "auth.certificates";

/// A list.
pub struct List {
    /// Dotted path in the file.
    pub key: &'static str,
    /// So many tables at most.
    pub most: usize,
    /// What is wrong with one of them.
    pub check: fn(Value) -> Result<(), String>,
}

pub const LISTS: &[List] = &[
    // More rules than anybody needs cost every record that is judged, and every token.
    List { key: RETENTION_RULES, most: 100, check: |table| read::<RetentionRule>(table).map(drop) },
    List { key: OIDC_RULES, most: 100, check: |table| read::<OidcRule>(table)?.grant().map(drop) },
    List {
        key: CERTIFICATES,
        most: 100,
        check: |table| read::<CertificateRule>(table)?.checked().map(drop),
    },
];

fn read<T: DeserializeOwned>(table: Value) -> Result<T, String> {
    table.try_into().map_err(|error: toml::de::Error| error.message().to_owned())
}

/// The list of this key.
pub fn by_key(key: &str) -> Option<&'static List> {
    LISTS.iter().find(|list| list.key == key)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::{Config, ConfigError, Outcome, ServeFlags, Warning};

    const RULE: &str = "[[auth.oidc.rules]]\nclaim = \"groups\"\nvalue = \"all\"\nrole = \"viewer\"\napps = [\"*\"]\n";

    fn load(text: &str) -> Result<(Config, Vec<Warning>), ConfigError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let mut flags = ServeFlags::default();
        flags.config = Some(file.path().to_owned());
        Config::load(&flags, std::iter::empty())
    }

    #[test]
    fn rules_of_tokens_and_certificates_are_read_checked_and_printed_again() {
        let oidc = "[auth]\nmode = \"required\"\n[auth.oidc]\nissuer = \"https://login.example\"\naudience = \"stepwell\"\n";
        let tls =
            "[tls]\nmode = \"on\"\ncert_file = \"c\"\nkey_file = \"k\"\nclient_ca_file = \"ca\"\n";
        let certificate = "[[auth.certificates]]\nsan = \"spiffe://org/*\"\nrole = \"reporter\"\napps = [\"shop\"]\nreveal = true\n";
        let text = format!("{oidc}{RULE}{certificate}{tls}");
        let (config, warnings) = load(&text).expect("good rules");
        assert_eq!(warnings, []);
        assert!(config.auth.certificates[0].reveal && !config.auth.oidc.rules[0].reveal);
        let (again, _) = load(&config.printable()).expect("what was printed");
        assert_eq!((&again.auth, &again.tls), (&config.auth, &config.tls));
        for (from, to, said) in [
            (
                "role = \"viewer\"",
                "role = \"boss\"",
                "auth.oidc.rules = rule 1: role \"boss\" is not one of",
            ),
            ("apps = [\"*\"]", "apps = []", "auth.oidc.rules = rule 1: apps has 0 entries"),
            (
                "apps = [\"*\"]",
                "apps = [\"a*b\"]",
                "auth.oidc.rules = rule 1: apps: \"a*b\" has a *",
            ),
            ("claim = \"groups\"", "claim = \"\"", "rule 1: needs a claim and a value"),
            ("claim = \"groups\"\n", "", "rule 1: missing field `claim`"),
            (
                "role = \"reporter\"",
                "roles = \"reporter\"",
                "auth.certificates = rule 1: unknown field `roles`",
            ),
            (
                "spiffe://org/*",
                "spiffe://*/x",
                "auth.certificates = rule 1: san \"spiffe://*/x\" has a *",
            ),
            ("spiffe://org/*", "", "auth.certificates = rule 1: san \"\" names nobody"),
            (
                "[[auth.oidc.rules]]",
                "[[auth.oidc.rule]]",
                "unknown key auth.oidc.rule; did you mean auth.oidc.rules?",
            ),
        ] {
            let error = load(&text.replace(from, to)).expect_err(said);
            assert!(error.to_string().contains(said), "{error}\nshould say: {said}");
        }
    }

    #[test]
    fn retention_rules_are_read_in_order_and_printed_again() {
        let text = "[retention]\nsteps = 0\n\
             [[retention.rules]]\nstatuses = [\"failed\"]\nexecutions = 0\n\
             [[retention.rules]]\napp_names = [\"a\", \"b\"]\napp_ids = [1]\nsteps = 0.5\n";
        let (config, _) = load(text).expect("good rules");
        let [failed, apps] = config.retention.rules.as_slice() else { panic!("{config:?}") };
        assert_eq!((failed.statuses.as_slice(), failed.steps), (&[Outcome::Failed][..], None));
        assert_eq!(failed.executions, Some(Duration::ZERO));
        assert_eq!((apps.app_ids.as_slice(), apps.app_names.len()), (&[1][..], 2));
        assert_eq!(apps.steps, Some(Duration::from_millis(500)));
        let (again, _) = load(&config.printable()).expect("what was printed");
        assert_eq!(again.retention, config.retention);
    }

    #[test]
    fn bad_retention_rules_are_refused_by_their_number() {
        for (rules, said) in [
            (
                "[[retention.rules]]\n[[retention.rules]]\nkeep = 3\n",
                "rule 2: unknown field `keep`",
            ),
            (
                "[[retention.rules]]\nstatuses = [\"running\"]\n",
                "rule 1: unknown variant `running`",
            ),
            ("[[retention.rules]]\nsteps = -1\n", "rule 1"),
            ("[[retention.rules]]\nsteps = 1e12\n", "longer than the limit of 100 years"),
            ("[retention]\nrules = 3\n", "expected tables"),
            (&"[[retention.rules]]\n".repeat(101), "at most 100"),
        ] {
            let error = load(rules).expect_err(rules).to_string();
            assert!(error.contains(said) && error.contains("retention.rules"), "{rules}: {error}");
            assert_eq!(error.lines().count(), 1, "{error}");
        }
    }
}
