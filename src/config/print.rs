//! The effective configuration as TOML, secrets hidden.

use std::fmt::Write as _;

use toml::Value;

use super::lists::LISTS;
use super::settings::settings;
use super::{Config, Origin};

impl Config {
    /// The value of a setting, secrets masked; `None` where it is left open.
    pub fn value(&self, key: &str) -> Option<Value> {
        let whole = Value::try_from(self)
            .expect("every part of the configuration has a form in TOML; a test prints them all");
        key.split('.').try_fold(&whole, |value, part| value.get(part)).cloned()
    }

    /// The effective configuration as TOML with secrets hidden, each setting that is not the default with
    /// where it came from.
    pub fn printable(&self) -> String {
        let mut out = String::new();
        let mut section = "";
        for setting in settings() {
            let (part, name) = setting.key.rsplit_once('.').unwrap_or(("", setting.key));
            if part != section {
                section = part;
                // Writing into a String cannot fail, here and below.
                let _ = write!(out, "\n[{part}]\n");
            }
            match self.value(setting.key) {
                Some(value) => {
                    let _ = write!(out, "{name} = {value}");
                }
                None => {
                    let _ = write!(out, "# {name} is not set");
                }
            }
            if let Some(origin) = self.origins.get(setting.key).filter(|o| **o != Origin::Default) {
                let _ = write!(out, " # {origin}");
            }
            out.push('\n');
        }
        for list in LISTS {
            let tables = self.value(list.key);
            for table in tables.as_ref().and_then(Value::as_array).into_iter().flatten() {
                if let Value::Table(table) = table {
                    let _ = write!(out, "\n[[{}]]\n{table}", list.key);
                }
            }
        }
        out
    }
}
