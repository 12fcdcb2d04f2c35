//! `stepwell keys`: makes, lists, rotates and revokes the keys of callers. `generate` needs no server.

use std::time::Duration;

use clap::Subcommand;
use serde_json::{Value as Json, json};

use super::connection::{Connection, call};
use super::exit::{Exit, Failure, Result};
use super::output::{Output, message};
use super::{json, table, text, time};
use crate::auth::key::Key;
use crate::clock::Clock;
use crate::proto;

/// Keys asked for at a time.
const PAGE: i32 = 1000;

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a key without a server, for auth.admin_key_file: the key, or its SHA-256 as the server needs it.
    Generate,
    /// Make a key on the server, and show it. It is shown only now.
    Create(Create),
    /// List all keys.
    List,
    /// Give a key another secret, and show it. The one before stays good for a while.
    Rotate(Rotate),
    /// Revoke a key.
    Revoke(Revoke),
}

#[derive(Debug, clap::Args)]
pub struct Create {
    /// What people call it.
    #[arg(long, value_name = "NAME")]
    name: String,
    /// reporter, viewer, editor, operator, auditor or admin. May be given several times: each role is for all the apps.
    #[arg(long, value_name = "ROLE", required = true)]
    role: Vec<String>,
    /// An app: NAME, NAME#ID, either with /PART, or * for everything. May be given several times.
    #[arg(long, value_name = "APP", required = true)]
    app: Vec<String>,
    /// Show what is encrypted in clear.
    #[arg(long)]
    reveal: bool,
    /// How long it is good, such as 30d; without it, for ever.
    #[arg(long, value_name = "DURATION", value_parser = time::parse_duration)]
    expires_in: Option<Duration>,
    /// Calls a second that each server accepts.
    #[arg(long, value_name = "N")]
    calls_per_second: Option<f64>,
    /// Calls beyond that at once.
    #[arg(long, value_name = "N", requires = "calls_per_second")]
    burst: Option<i32>,
}

#[derive(Debug, clap::Args)]
pub struct Rotate {
    /// The id of the key.
    key_id: String,
    /// How long the secret of before stays good; without it, 24 hours.
    #[arg(long, value_name = "DURATION", value_parser = time::parse_duration)]
    overlap: Option<Duration>,
}

#[derive(Debug, clap::Args)]
pub struct Revoke {
    /// The id of the key.
    key_id: String,
}

/// Makes a key without a server.
pub fn generate(output: &Output) -> Result<Exit> {
    let key = Key::generate().map_err(|error| {
        Failure::CouldNotStart(format!("the system has no randomness: {error}"))
    })?;
    let sha256 = hex::encode(key.hash());
    match output.is_json() {
        true => output.json(&json!({
            "key_id": key.id(), "secret": key.expose(), "sha256": sha256,
        }))?,
        false => {
            // Alone on stdout, so that it can be written into a file.
            output.line(key.expose())?;
            message(&format!(
                "for auth.admin_key_file, instead of the key itself: sha256:{sha256}"
            ));
        }
    }
    Ok(Exit::Done)
}

pub async fn run(
    command: Command,
    connection: &Connection,
    output: &Output,
    clock: &dyn Clock,
) -> Result<Exit> {
    let mut client = connection.auth();
    match command {
        Command::Generate => return generate(output),
        Command::Create(create) => {
            let expires_at = create.expires_in.map(|good_for| {
                let until = clock.now().millis().saturating_add(millis(good_for));
                crate::rpc::convert::timestamp(until)
            });
            let grant = |role: String| proto::Grant {
                role,
                apps: create.app.clone(),
                reveal: create.reveal,
            };
            let request = proto::CreateKeyRequest {
                name: create.name,
                grants: create.role.into_iter().map(grant).collect(),
                expires_at,
                calls_per_second: create.calls_per_second,
                burst: create.burst,
            };
            let made = client.create_key(call(request)).await?.into_inner();
            show_secret(output, made.key, &made.secret)?;
        }
        Command::Rotate(rotate) => {
            let overlap = rotate.overlap.map(|overlap| prost_types::Duration {
                seconds: i64::try_from(overlap.as_secs()).unwrap_or(i64::MAX),
                nanos: i32::try_from(overlap.subsec_nanos()).unwrap_or(0),
            });
            let request = proto::RotateKeyRequest { key_id: rotate.key_id, overlap };
            let rotated = client.rotate_key(call(request)).await?.into_inner();
            show_secret(output, rotated.key, &rotated.secret)?;
        }
        Command::Revoke(revoke) => {
            let request = proto::RevokeKeyRequest { key_id: revoke.key_id };
            let revoked =
                client.revoke_key(call(request)).await?.into_inner().key.unwrap_or_default();
            match output.is_json() {
                true => output.json(&key(&revoked))?,
                false => message(&format!("{} is revoked", text::one_line(&revoked.key_id))),
            }
        }
        Command::List => {
            let mut all = Vec::new();
            let mut page_token = String::new();
            loop {
                let request = proto::ListKeysRequest { page_size: PAGE, page_token };
                let page = client.list_keys(call(request)).await?.into_inner();
                all.extend(page.keys);
                page_token = page.next_page_token;
                if page_token.is_empty() {
                    break;
                }
            }
            list(&all, output)?;
        }
    }
    Ok(Exit::Done)
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// The secret alone on stdout, so that it can be written into a file.
fn show_secret(output: &Output, made: Option<proto::Key>, secret: &str) -> Result<()> {
    let made = made.unwrap_or_default();
    if output.is_json() {
        return output.json(&json!({ "key": key(&made), "secret": secret }));
    }
    message(&format!(
        "key {} ({}); it is shown only now:",
        made.key_id,
        text::one_line(&made.name)
    ));
    output.line(secret)
}

fn key(key: &proto::Key) -> Json {
    let grant = |grant: &proto::Grant| json!({ "role": grant.role, "apps": grant.apps, "reveal": grant.reveal });
    json!({
        "key_id": key.key_id,
        "name": key.name,
        "grants": key.grants.iter().map(grant).collect::<Vec<_>>(),
        "created_at": json::time(key.created_at.as_ref()),
        "created_by": key.created_by,
        "expires_at": json::time(key.expires_at.as_ref()),
        "revoked_at": json::time(key.revoked_at.as_ref()),
        "revoked_by": key.revoked_by,
        "last_used_at": json::time(key.last_used_at.as_ref()),
        "calls_per_second": key.calls_per_second,
        "burst": key.burst,
        "previous_until": json::time(key.previous_until.as_ref()),
    })
}

fn list(keys: &[proto::Key], output: &Output) -> Result<()> {
    const COLUMNS: [table::Column; 6] = [
        table::Column::whole("KEY"),
        table::Column::cut("NAME", 10),
        table::Column::cut("MAY", 12),
        table::Column::whole("CREATED").spare(2),
        table::Column::whole("LAST USED").spare(1),
        table::Column::whole("ENDS"),
    ];
    if output.is_json() {
        return keys.iter().try_for_each(|found| output.json(&key(found)));
    }
    let grants = |key: &proto::Key| {
        let grant = |grant: &proto::Grant| {
            let reveal = if grant.reveal { ", reveal" } else { "" };
            format!("{} {}{reveal}", grant.role, grant.apps.join(" "))
        };
        text::one_line(&key.grants.iter().map(grant).collect::<Vec<_>>().join("; "))
    };
    let ends = |key: &proto::Key| match (&key.revoked_at, &key.expires_at) {
        (Some(at), _) => format!("revoked {}", text::time(Some(at))),
        (None, at) => text::time(at.as_ref()),
    };
    let rows = keys.iter().map(|key| {
        vec![
            text::one_line(&key.key_id).into(),
            text::one_line(&key.name).into(),
            grants(key).into(),
            text::time(key.created_at.as_ref()).into(),
            text::time(key.last_used_at.as_ref()).into(),
            ends(key).into(),
        ]
    });
    for line in table::render(output, &COLUMNS, rows.collect()) {
        output.line(&line)?;
    }
    Ok(())
}
