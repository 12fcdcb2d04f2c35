//! What Stepwell has to be allowed in its database, as a role: that and nothing else. And how what somebody is allowed
//! differs from it.

use std::collections::{BTreeMap, BTreeSet};

use bson::{Bson, Document, doc};

use super::names::{LISTED, Use};

/// What the role is called.
pub const ROLE: &str = "stepwell";

/// On all collections of the database.
const EVERYWHERE: &[&str] = &["find", "listCollections", "listIndexes", "changeStream"];
const CHANGED: &[&str] =
    &["insert", "update", "remove", "createCollection", "createIndex", "collMod"];
const APPENDED: &[&str] = &["insert", "createCollection", "createIndex", "collMod"];

/// What is needed in one collection.
fn needed_in(used: Use) -> &'static [&'static str] {
    match used {
        Use::Changed => CHANGED,
        Use::Appended => APPENDED,
        // What the database keeps for itself is not asked for: the answer is found without it, only later.
        Use::Read => &[],
    }
}

/// The command that makes the role, to be run in the database.
pub fn create_role(database: &str) -> Document {
    let privilege = |collection: &str, actions: &[&str]| {
        let resource = doc! { "db": database, "collection": collection };
        Bson::from(doc! { "resource": resource, "actions": actions })
    };
    let mut privileges = vec![privilege("", EVERYWHERE)];
    for listed in LISTED {
        let actions = needed_in(listed.used);
        if !actions.is_empty() {
            privileges.push(privilege(&listed.name, actions));
        }
    }
    doc! { "createRole": ROLE, "privileges": privileges, "roles": [] }
}

/// How what somebody may do differs from the role, in words.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Difference {
    pub missing: Vec<String>,
    pub excess: Vec<String>,
}

/// What a privilege is for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Resource {
    /// A collection of a database; an empty name is any.
    Collection(String, String),
    /// Something else, in words.
    Other(String),
}

impl Resource {
    fn of(resource: &Document) -> Resource {
        match (resource.get_str("db"), resource.get_str("collection")) {
            (Ok(database), Ok(collection)) => {
                Resource::Collection(database.to_owned(), collection.to_owned())
            }
            _ if resource.contains_key("cluster") => Resource::Other("the cluster".to_owned()),
            _ if resource.contains_key("anyResource") => {
                Resource::Other("everything there is".to_owned())
            }
            _ => Resource::Other(resource.to_string()),
        }
    }

    /// Whether it holds a collection of this database, or with an empty name all of them.
    fn holds(&self, database: &str, collection: &str) -> bool {
        match self {
            Resource::Collection(held, name) => {
                (held.is_empty() || held == database) && (name.is_empty() || name == collection)
            }
            Resource::Other(words) => words == "everything there is",
        }
    }

    /// Whether the role has this action for just this.
    fn needs(&self, database: &str, action: &str) -> bool {
        let Resource::Collection(held, name) = self else { return false };
        let own = LISTED.iter().filter(|listed| listed.name.as_str() == name);
        let own = own.flat_map(|listed| needed_in(listed.used));
        held == database && EVERYWHERE.iter().chain(own).any(|needed| *needed == action)
    }

    fn words(&self) -> String {
        match self {
            Resource::Collection(database, name) => match (database.as_str(), name.as_str()) {
                ("", "") => "every database".to_owned(),
                ("", name) => format!("{name} of every database"),
                (database, "") => format!("all of {database}"),
                (database, name) => format!("{database}.{name}"),
            },
            Resource::Other(words) => words.clone(),
        }
    }
}

/// How these privileges, as the database tells them, differ from the role.
pub fn difference(database: &str, privileges: &[Document]) -> Difference {
    let mut held: BTreeMap<Resource, BTreeSet<&str>> = BTreeMap::new();
    for privilege in privileges {
        let Ok(resource) = privilege.get_document("resource") else { continue };
        let actions = privilege.get_array("actions").into_iter().flatten();
        held.entry(Resource::of(resource)).or_default().extend(actions.filter_map(Bson::as_str));
    }
    let lacks = |collection: &str, actions: &[&'static str]| -> Vec<&'static str> {
        let may = |action: &str| {
            held.iter().any(|(resource, actions)| {
                resource.holds(database, collection) && actions.contains(action)
            })
        };
        actions.iter().copied().filter(|action| !may(action)).collect()
    };
    let mut found = Difference::default();
    let mut tell = |place: String, actions: Vec<&str>| {
        if !actions.is_empty() {
            found.missing.push(format!("{} on {place}", actions.join(", ")));
        }
    };
    tell(format!("all of {database}"), lacks("", EVERYWHERE));
    for listed in LISTED {
        tell(format!("{database}.{}", listed.name), lacks(&listed.name, needed_in(listed.used)));
    }
    for (resource, actions) in &held {
        let more: Vec<&str> =
            actions.iter().copied().filter(|action| !resource.needs(database, action)).collect();
        if !more.is_empty() {
            found.excess.push(format!("{} on {}", more.join(", "), resource.words()));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn privileges(role: &Document) -> Vec<Document> {
        let privileges = role.get_array("privileges").unwrap().iter();
        privileges.map(|privilege| privilege.as_document().unwrap().clone()).collect()
    }

    #[test]
    fn the_role_is_what_is_needed_and_no_more() {
        let role = create_role("ai_apps");
        assert_eq!(role.keys().next().map(String::as_str), Some("createRole"));
        let of = |collection: &str| {
            let all = privileges(&role);
            let found = all.iter().find(|privilege| {
                privilege
                    .get_document("resource")
                    .unwrap()
                    .get_str("collection")
                    .is_ok_and(|name| name == collection)
            });
            found.map(|privilege| privilege.get_array("actions").unwrap().clone())
        };
        let actions = |words: &[&str]| -> Option<Vec<Bson>> {
            Some(words.iter().map(|word| Bson::from(*word)).collect())
        };
        assert_eq!(of(""), actions(EVERYWHERE));
        assert_eq!(of("executions"), actions(CHANGED));
        assert_eq!(of("artifacts.chunks"), actions(CHANGED));
        assert_eq!(
            of("audit_log"),
            actions(&["insert", "createCollection", "createIndex", "collMod"])
        );
        assert_eq!(of("system.buckets.execution_metrics"), None);
        assert_eq!(difference("ai_apps", &privileges(&role)), Difference::default());
    }

    #[test]
    fn what_is_missing_and_what_is_too_much_is_told() {
        let mut given = privileges(&create_role("ai_apps"));
        given.retain(|privilege| {
            let resource = privilege.get_document("resource").unwrap();
            !["executions", "audit_log"].contains(&resource.get_str("collection").unwrap())
        });
        let grant = |resource: Document, actions: &[&str]| doc! { "resource": resource, "actions": actions };
        given.push(grant(
            doc! { "db": "ai_apps", "collection": "executions" },
            &["insert", "update", "remove", "createCollection", "collMod", "dropCollection"],
        ));
        given.push(grant(doc! { "db": "ai_apps", "collection": "audit_log" }, APPENDED));
        given.push(grant(doc! { "db": "ai_apps", "collection": "audit_log" }, &["remove"]));
        given.push(grant(doc! { "db": "other", "collection": "" }, &["find"]));
        given.push(grant(doc! { "cluster": true }, &["inprog"]));
        let found = difference("ai_apps", &given);
        assert_eq!(found.missing, ["createIndex on ai_apps.executions"]);
        assert_eq!(
            found.excess,
            [
                "remove on ai_apps.audit_log",
                "dropCollection on ai_apps.executions",
                "find on all of other",
                "inprog on the cluster",
            ]
        );
        let all = [grant(doc! { "anyResource": true }, &["find", "anyAction"])];
        let found = difference("ai_apps", &all);
        assert!(
            found.missing.contains(
                &"listCollections, listIndexes, changeStream on all of ai_apps".to_owned()
            )
        );
        assert_eq!(found.excess, ["anyAction, find on everything there is"]);
        let wide = [
            grant(doc! { "db": "", "collection": "" }, CHANGED),
            grant(doc! { "db": "ai_apps", "collection": "" }, EVERYWHERE),
        ];
        let found = difference("ai_apps", &wide);
        assert!(found.missing.is_empty(), "{found:?}");
        assert_eq!(found.excess.len(), 1);
    }
}
