//! The rule of ARCHITECTURE.md about which way imports point, read off the sources themselves. A rule that no
//! tool checks will be broken.
//!
//! Every path in `src/` and `bench/src/` counts, in a `use` line or in the middle of an expression. Unit tests inside a module
//! do not: they may put a real store under whatever they test.

#[path = "layering/collections.rs"]
mod collections;
#[path = "layering/files.rs"]
mod files;
#[path = "layering/paths.rs"]
mod paths;

use std::collections::BTreeSet;

use paths::{BENCH, Import, SRC, imports_in, module_of, sources};

/// One layer: the modules that belong to it, and what they may reach.
struct Layer {
    /// Module paths, longest match wins over other layers.
    modules: &'static [&'static str],
    /// Module paths of this crate it may name. A module of the same entry is always allowed.
    may_use: &'static [&'static str],
    /// Crates among `GUARDED_CRATES` it may name.
    crates: &'static [&'static str],
}

/// Crates that belong to certain layers only.
const GUARDED_CRATES: &[&str] = &[
    "axum",
    "clap",
    "comfy_table",
    "indicatif",
    "metrics_exporter_prometheus",
    "mongodb",
    "object_store",
    "opentelemetry",
    "opentelemetry_otlp",
    "opentelemetry_sdk",
    "prost",
    "prost_types",
    "rusqlite",
    "tonic",
    "tonic_health",
    "tonic_prost",
    "tonic_reflection",
    "tonic_types",
];

/// The backends. Of the layers above, only the composition root may name one.
const BACKENDS: &[&str] =
    &["store::sqlite", "store::mongo", "blobs::gridfs", "blobs::local", "blobs::s3"];

/// Crates that speak to a database or a storage.
const DRIVERS: &[&str] = &["mongodb", "object_store", "rusqlite"];

/// What the load generator, a package of its own, may name of the library: the API and its values.
const BENCH_MAY_USE: &[&str] = &["app::ids", "clock", "domain", "proto", "rpc::convert"];

/// The modules of the load generator that speak to a database or a storage, to compare with it or to look at it.
const BENCH_DRIVERS: &[&str] =
    &["artifacts::direct", "lists::direct", "track::direct", "search::direct", "watch::sampler"];

/// Those of them that measure the driver on the indexes and documents of the store.
const BENCH_STORE: &[&str] = &["lists::direct", "track::direct"];

/// What is open to everybody above the rules: time, and handles that count.
const COMMON: &[&str] = &["clock", "detached", "domain", "telemetry::metrics"];

/// What is open to those who read the log of changes.
const COMMON_AND_STORE: &[&str] = &["clock", "detached", "domain", "store", "telemetry::metrics"];

const LAYERS: &[Layer] = &[
    Layer { modules: &["domain"], may_use: &[], crates: &[] },
    Layer { modules: &["clock"], may_use: &["domain"], crates: &[] },
    Layer { modules: &["detached"], may_use: &[], crates: &[] },
    Layer {
        modules: &["config"],
        may_use: &[
            "domain::access",
            "domain::hosts",
            "domain::limits",
            "domain::notification",
            "domain::san",
        ],
        crates: &["clap"],
    },
    Layer {
        modules: &["telemetry"],
        may_use: &["clock", "config"],
        crates: &[
            "metrics_exporter_prometheus",
            "opentelemetry",
            "opentelemetry_otlp",
            "opentelemetry_sdk",
        ],
    },
    Layer { modules: &["store"], may_use: COMMON, crates: &[] },
    Layer {
        modules: &["store::sqlite"],
        may_use: &["clock", "detached", "domain", "store", "telemetry::metrics"],
        crates: &["rusqlite"],
    },
    Layer {
        modules: &["store::mongo"],
        may_use: &["clock", "detached", "domain", "store", "telemetry::metrics"],
        crates: &["mongodb"],
    },
    Layer { modules: &["blobs"], may_use: &["clock", "detached", "domain"], crates: &[] },
    Layer {
        modules: &["blobs::gridfs"],
        may_use: &["blobs", "clock", "store"],
        crates: &["mongodb"],
    },
    Layer { modules: &["blobs::s3"], may_use: &["blobs"], crates: &["object_store"] },
    Layer { modules: &["outbound"], may_use: &["clock", "domain::notification"], crates: &[] },
    Layer { modules: &["watch"], may_use: COMMON_AND_STORE, crates: &[] },
    Layer { modules: &["audit"], may_use: COMMON_AND_STORE, crates: &[] },
    Layer {
        modules: &["app"],
        may_use: &[
            "audit",
            "blobs",
            "clock",
            "detached",
            "domain",
            "follow",
            "outbound",
            "store",
            "telemetry::metrics",
            "watch",
        ],
        crates: &[],
    },
    Layer {
        modules: &["auth"],
        may_use: &["app", "clock", "domain", "store", "telemetry::metrics"],
        crates: &[],
    },
    Layer { modules: &["follow"], may_use: COMMON_AND_STORE, crates: &[] },
    Layer { modules: &["proto"], may_use: &[], crates: &["prost", "prost_types", "tonic"] },
    Layer {
        modules: &["rpc"],
        may_use: &[
            "app",
            "audit",
            "auth",
            "blobs",
            "clock",
            "detached",
            "domain",
            "follow",
            "outbound",
            "proto",
            "store",
            "telemetry",
            "watch",
        ],
        crates: &[
            "prost",
            "prost_types",
            "tonic",
            "tonic_health",
            "tonic_reflection",
            "tonic_types",
        ],
    },
    Layer { modules: &["http"], may_use: &["telemetry::metrics"], crates: &["axum"] },
    Layer { modules: &["shutdown"], may_use: &["config"], crates: &[] },
    // Beside the composition root, which opens the database for it to look at.
    Layer { modules: &["doctor"], may_use: &["clock", "config", "server", "store"], crates: &[] },
];

fn is_under(path: &str, module: &str) -> bool {
    path == module || path.strip_prefix(module).is_some_and(|rest| rest.starts_with("::"))
}

/// The layer of a module, by the longest prefix.
fn layer_of(module: &str) -> Option<&'static Layer> {
    LAYERS
        .iter()
        .filter_map(|layer| {
            let longest =
                layer.modules.iter().filter(|own| is_under(module, own)).map(|own| own.len());
            longest.max().map(|length| (length, layer))
        })
        .max_by_key(|(length, _)| *length)
        .map(|(_, layer)| layer)
}

/// What is wrong with an import, if anything is.
fn violation(import: &Import) -> Option<String> {
    let layer = layer_of(&import.from);
    let path = import.path.join("::");
    if !import.inside {
        let name = import.path.first()?;
        if !GUARDED_CRATES.contains(&name.as_str()) {
            return None;
        }
        if DRIVERS.contains(&name.as_str()) {
            let allowed = layer.is_some_and(|layer| layer.crates.contains(&name.as_str()));
            return (!allowed).then(|| "a driver above the store and the storages".to_owned());
        }
        return layer
            .is_some_and(|layer| !layer.crates.contains(&name.as_str()))
            .then(|| format!("{} does not know the crate {name}", import.from));
    }
    let names_backend = BACKENDS.iter().find(|backend| is_under(&path, backend));
    if let Some(backend) = names_backend
        && !is_under(&import.from, backend)
        && import.from != "server::backends"
    {
        return Some("only server/backends.rs names a backend".to_owned());
    }
    if is_under(&import.from, "cli") {
        // `rpc::convert` only turns values into messages.
        let data = [
            "app",
            "blobs",
            "store",
            "watch",
            "rpc::artifacts",
            "rpc::executions",
            "rpc::steps",
            "rpc::ingest",
            "rpc::admin",
        ];
        if data.iter().any(|module| is_under(&path, module)) {
            return Some("the command line reaches data only through gRPC".to_owned());
        }
    }
    let layer = layer?;
    let allowed = layer.modules.iter().chain(layer.may_use).any(|module| is_under(&path, module));
    (!allowed).then(|| format!("{} does not know {path}", import.from))
}

#[test]
fn imports_point_one_way() {
    let imports = imports_in(SRC);
    let mut wrong = Vec::new();
    for import in &imports {
        if let Some(why) = violation(import) {
            wrong.push(format!("{import}: {why}"));
        }
    }
    assert!(imports.len() > 100, "the reader of `use` lines found only {} paths", imports.len());
    assert!(wrong.is_empty(), "{} imports break the rule:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn the_load_generator_sees_a_server_from_outside() {
    let imports = imports_in(BENCH);
    let wrong: Vec<String> = imports
        .iter()
        .filter(|import| {
            let is_one_of = |modules: &[&str]| modules.contains(&import.from.as_str());
            match import.path.split_first() {
                Some((name, rest)) if !import.inside && name == "stepwell" => {
                    let path = rest.join("::");
                    let is_api = BENCH_MAY_USE.iter().any(|module| is_under(&path, module));
                    let is_store = is_under(&path, "store::mongo") && is_one_of(BENCH_STORE);
                    !(is_api || is_store)
                }
                Some((name, _)) if DRIVERS.contains(&name.as_str()) => !is_one_of(BENCH_DRIVERS),
                _ => false,
            }
        })
        .map(|import| import.to_string())
        .collect();
    assert!(imports.len() > 100, "the reader of `use` lines found only {} paths", imports.len());
    assert!(wrong.is_empty(), "the load generator reaches into the server:\n{}", wrong.join("\n"));
}

/// The ground floor of the MongoDB backend, and the backend.
const GROUND: (&str, &str) = ("store::mongo::db", "store::mongo");

#[test]
fn the_ground_of_the_mongodb_backend_knows_no_room_of_it() {
    let up: Vec<String> = imports_in(SRC)
        .iter()
        .filter(|import| import.inside && is_under(&import.from, GROUND.0))
        .filter(|import| {
            let path = import.path.join("::");
            is_under(&path, GROUND.1) && !is_under(&path, GROUND.0)
        })
        .map(ToString::to_string)
        .collect();
    assert!(up.is_empty(), "\n{}", up.join("\n"));
}

#[test]
fn only_the_ground_of_the_mongodb_backend_opens_collections() {
    let opened: Vec<String> = imports_in(SRC)
        .iter()
        .filter(|import| is_under(&import.from, GROUND.1) && !is_under(&import.from, GROUND.0))
        .filter(|import| match import.path.as_slice() {
            [krate, .., name] => {
                krate == "mongodb"
                    && ["Client", "Collection", "ReadConcern", "ReadPreference", "Collation"]
                        .contains(&name.as_str())
            }
            _ => false,
        })
        .map(ToString::to_string)
        .collect();
    assert!(opened.is_empty(), "\n{}", opened.join("\n"));
}

#[test]
fn only_one_file_makes_a_status() {
    const CONSTRUCTORS: &[&str] = &[
        "aborted",
        "already_exists",
        "cancelled",
        "data_loss",
        "deadline_exceeded",
        "failed_precondition",
        "from_error",
        "internal",
        "invalid_argument",
        "new",
        "not_found",
        "out_of_range",
        "permission_denied",
        "resource_exhausted",
        "unauthenticated",
        "unavailable",
        "unimplemented",
        "unknown",
        "with_details",
        "with_details_and_metadata",
        "with_error_details",
        "with_error_details_vec",
        "with_metadata",
    ];
    let made: Vec<String> = imports_in(SRC)
        .into_iter()
        .filter(|import| !is_under(&import.from, "rpc::status"))
        // Clients: what they make never leaves them.
        .filter(|import| !is_under(&import.from, "cli"))
        .filter(|import| match import.path.as_slice() {
            [.., status, constructor] => {
                status == "Status" && CONSTRUCTORS.contains(&constructor.as_str())
            }
            _ => false,
        })
        .map(|import| import.to_string())
        .collect();
    assert!(made.is_empty(), "only rpc/status makes a Status:\n{}", made.join("\n"));
}

#[test]
fn every_layer_of_the_rule_exists() {
    let modules: BTreeSet<String> = sources(SRC).iter().map(|file| module_of(SRC, file)).collect();
    for layer in LAYERS {
        for module in layer.modules.iter().chain(layer.may_use) {
            assert!(
                modules.iter().any(|existing| is_under(existing, module)),
                "the rule names {module}, which is not in src/"
            );
        }
    }
}
