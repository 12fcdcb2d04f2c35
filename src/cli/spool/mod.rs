//! `stepwell spool`: what apps have reported and their server does not have yet. The libraries for Python and TypeScript
//! keep that in files, and the next process of the app sends it; this does the same where there is no next process.

mod folder;
mod format;
mod hold;
mod left;
mod open_runs;
mod refused;
mod send;
mod uploads;

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Subcommand;
use serde_json::json;

use super::connection::{ServerArgs, parse_address};
use super::exit::{Exit, Failure, Result};
use super::output::{Output, message};
use super::{table, text};
use crate::clock::Clock;
use folder::{About, Aim};
use format::Maker;
use left::Left;
use send::{Sending, Sent};

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show what there is: of processes that live, of those that have ended, and what servers have refused.
    List(Folder),
    /// Send what processes that have ended have left, and end the runs that they left open as FAILED with the code
    /// PROCESS_DIED, which any later sign of life corrects. What a server refuses is named and kept, and sent again
    /// the next time.
    Send(Box<SendArgs>),
    /// Delete what processes that have ended have left, and what was refused.
    Drop(DropArgs),
}

/// Which spool.
#[derive(Debug, clap::Args)]
pub struct Folder {
    /// The folder of the spool; by default all below $XDG_STATE_HOME/stepwell/spool or ~/.local/state/stepwell/spool.
    #[arg(long, value_name = "DIR", env = "STEPWELL_SPOOL_DIR")]
    spool_dir: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
pub struct SendArgs {
    #[command(flatten)]
    folder: Folder,
    /// Send only what is for this server, and what does not say for which it is; by default everything goes to the
    /// server that its file names. A key is sent only to a server that is named here.
    #[arg(long, value_name = "ADDR", value_parser = parse_address)]
    server: Option<String>,
    /// File of the authorities in PEM that vouch for the server; without it, those of this machine.
    #[arg(long, value_name = "FILE", requires = "server")]
    tls_ca: Option<PathBuf>,
    /// File with a certificate in PEM to show to the server.
    #[arg(long, value_name = "FILE", requires_all = ["tls_key", "server"])]
    tls_cert: Option<PathBuf>,
    /// File with the private key of that certificate in PEM.
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// File with the key to send to the server; without it, the key in STEPWELL_KEY is sent, if there is one.
    #[arg(long, value_name = "FILE", requires = "server")]
    key_file: Option<PathBuf>,
    /// Send the key to a server on another machine although the connection is not encrypted.
    #[arg(long, requires = "server")]
    key_in_clear: bool,
}

#[derive(Debug, clap::Args)]
pub struct DropArgs {
    #[command(flatten)]
    folder: Folder,
    /// Delete only what is for this server.
    #[arg(long, value_name = "ADDR", value_parser = parse_address)]
    server: Option<String>,
    /// Delete only what a server has refused.
    #[arg(long)]
    refused: bool,
    /// Really: it was never stored.
    #[arg(long)]
    yes: bool,
}

pub async fn run(command: Command, output: &Output, clock: &dyn Clock) -> Result<Exit> {
    match command {
        Command::List(folder) => list(&folder, output),
        Command::Send(args) => send(&args, output, clock).await,
        Command::Drop(args) => drop_left(&args, output, clock),
    }
}

impl Folder {
    fn folders(&self) -> Vec<PathBuf> {
        match &self.spool_dir {
            Some(folder) => vec![folder.clone()],
            None => folder::default_folders(),
        }
    }

    /// Everything in the spool.
    fn left(&self) -> Result<Vec<Left>> {
        let mut found = Vec::new();
        for folder in self.folders() {
            found.extend(folder::find(&folder).map_err(|error| {
                Failure::CouldNotStart(format!("{}: {error}", folder.display()))
            })?);
        }
        Ok(found)
    }

    fn sweep(&self) {
        self.folders().iter().for_each(|folder| folder::sweep(folder));
    }
}

fn state(left: &Left, about: &About) -> &'static str {
    match (about.in_use, &about.aim, left.maker) {
        (true, ..) => "in use",
        (_, Aim::Strange(_), _) => "unreadable",
        (_, _, Maker::Refused) => "refused",
        _ => "left behind",
    }
}

fn list(folder: &Folder, output: &Output) -> Result<Exit> {
    let mut rows = Vec::new();
    for left in folder.left()? {
        let about = left.describe();
        let server = match &about.aim {
            Aim::Server(server) => Some(server.as_str()),
            _ => None,
        };
        if output.is_json() {
            let refusals = about.refusals.iter();
            let refusals: Vec<_> = refusals
                .map(|(write, reason)| json!({ "write": write, "reason": reason }))
                .collect();
            output.json(&json!({
                "folder": left.folder,
                "pid": left.pid(),
                "started_at_us": left.started_at_us(),
                "written_by": left.maker.name(),
                "state": state(&left, &about),
                "in_use": about.in_use,
                "server": server,
                "writes": about.writes,
                "bytes": about.bytes,
                "cut_bytes": about.cut_bytes,
                "artifacts": left.artifacts.len(),
                "refusals": refusals,
            }))?;
            continue;
        }
        rows.push(vec![
            left.pid().to_string().into(),
            state(&left, &about).into(),
            about.writes.to_string().into(),
            about.bytes.to_string().into(),
            left.artifacts.len().to_string().into(),
            left.maker.name().into(),
            text::one_line(server.unwrap_or("?")).into(),
            text::one_line(&left.folder.display().to_string()).into(),
        ]);
    }
    if output.is_json() {
        return Ok(Exit::Done);
    }
    if rows.is_empty() {
        message("the spool is empty");
        return Ok(Exit::Done);
    }
    let columns = [
        table::Column::whole("PID"),
        table::Column::whole("STATE"),
        table::Column::whole("WRITES").right(),
        table::Column::whole("BYTES").right(),
        table::Column::whole("ARTIFACTS").right(),
        table::Column::whole("WRITTEN BY").spare(2),
        table::Column::whole("SERVER"),
        table::Column::cut("FOLDER", 20).spare(1),
    ];
    for line in table::render(output, &columns, rows) {
        output.line(&line)?;
    }
    Ok(Exit::Done)
}

/// The address of a server as apps give it, which know more schemes than this program and compare addresses without.
fn address(given: &str) -> std::result::Result<String, String> {
    let known = [("grpcs://", "https://"), ("grpc://", "http://")];
    let known = known
        .into_iter()
        .find_map(|(theirs, ours)| given.strip_prefix(theirs).map(|rest| format!("{ours}{rest}")));
    let address = known.as_deref().unwrap_or(given).trim_end_matches('/');
    // They may leave out the port of TLS.
    let bare =
        address.strip_prefix("https://").filter(|rest| !without_brackets(rest).contains(':'));
    match bare {
        Some(rest) => parse_address(&format!("https://{rest}:443")),
        None => parse_address(address),
    }
}

/// What comes behind the address of IPv6, whose colons are no port.
fn without_brackets(host: &str) -> &str {
    host.rsplit_once(']').map_or(host, |(_, rest)| rest)
}

/// Whether two addresses are of the same server, however it is spoken to.
fn is_same(one: &str, other: &str) -> bool {
    let bare = |given: &str| {
        let address = address(given).unwrap_or_else(|_| given.to_owned());
        let rest = address.split_once("://").map_or(address.as_str(), |(_, rest)| rest);
        rest.trim_end_matches('/').to_ascii_lowercase()
    };
    bare(one) == bare(other)
}

/// Says that something is left alone, and why.
fn leave(left: &Left, why: &str) {
    let said = format!("note: {} in {} {why}", left.owner, left.folder.display());
    message(&text::one_line(&said));
}

async fn send(args: &SendArgs, output: &Output, clock: &dyn Clock) -> Result<Exit> {
    let mut servers: BTreeMap<String, Vec<(Left, About)>> = BTreeMap::new();
    let mut stays = false;
    for left in args.folder.left()? {
        let about = left.describe();
        if about.in_use {
            continue;
        }
        let named = match &about.aim {
            Aim::Strange(why) => {
                leave(&left, &format!("{why}, and is left alone"));
                stays = true;
                continue;
            }
            Aim::Server(named) => Some(named.clone()),
            Aim::Unsaid => None,
        };
        match (&args.server, &named) {
            (Some(wanted), Some(named)) if !is_same(wanted, named) => continue,
            _ => {}
        }
        if about.is_nothing() && left.artifacts.is_empty() {
            if let Ok(Some(claimed)) = hold::claim(left, named, clock) {
                let _ = claimed.remove();
            }
            continue;
        }
        let address = match (&args.server, &named) {
            (Some(wanted), _) => Ok(wanted.clone()),
            (None, Some(named)) => address(named)
                .map_err(|why| format!("is for {}, which {why}", text::one_line(named))),
            (None, None) => Err("does not say for which server it is: use --server".to_owned()),
        };
        match address {
            Ok(address) => servers.entry(address).or_default().push((left, about)),
            Err(why) => {
                leave(&left, &why);
                stays = true;
            }
        }
    }
    for (address, lefts) in servers {
        let sent = send_to(&address, args, lefts, clock).await?;
        stays |= sent.left > 0 || sent.refused > 0;
        print(output, &address, &sent)?;
    }
    args.folder.sweep();
    Ok(Exit::refused_if(stays))
}

async fn send_to(
    address: &str,
    args: &SendArgs,
    lefts: Vec<(Left, About)>,
    clock: &dyn Clock,
) -> Result<Sent> {
    let server = ServerArgs {
        server: address.to_owned(),
        tls_ca: args.tls_ca.clone(),
        tls_cert: args.tls_cert.clone(),
        tls_key: args.tls_key.clone(),
        key_file: args.key_file.clone(),
        key_in_clear: args.key_in_clear,
    };
    // A file says where it goes, but not who may have the key.
    let connection =
        if args.server.is_some() { server.connect()? } else { server.connect_without_key()? };
    Ok(Sending::new(&connection, clock).everything(lefts).await)
}

fn print(output: &Output, address: &str, sent: &Sent) -> Result<()> {
    if output.is_json() {
        return output.json(&json!({
            "server": address,
            "writes": sent.writes,
            "artifacts": sent.artifacts,
            "refused": sent.refused,
            "left": sent.left,
        }));
    }
    output.line(&format!(
        "{}: {} and {} sent, {} refused, {} left",
        text::one_line(address),
        text::count(sent.writes, "write", "writes"),
        text::count(sent.artifacts, "artifact", "artifacts"),
        sent.refused,
        sent.left
    ))
}

fn drop_left(args: &DropArgs, output: &Output, clock: &dyn Clock) -> Result<Exit> {
    if !args.yes {
        return Err(Failure::CouldNotStart(
            "this deletes what was never stored: use --yes".to_owned(),
        ));
    }
    let mut dropped = 0_u64;
    for left in args.folder.left()? {
        let about = left.describe();
        let named = match &about.aim {
            Aim::Strange(why) => {
                leave(&left, &format!("{why}, and is left alone"));
                continue;
            }
            Aim::Server(named) => Some(named.clone()),
            Aim::Unsaid => None,
        };
        let is_wanted = match (&args.server, &named) {
            (Some(wanted), Some(named)) => is_same(wanted, named),
            (Some(_), None) => false,
            (None, _) => true,
        };
        if about.in_use || !is_wanted || (args.refused && left.maker != Maker::Refused) {
            continue;
        }
        let cannot = |error| Failure::Refused(format!("cannot be deleted: {error}"));
        if let Some(claimed) = hold::claim(left, named, clock).map_err(cannot)? {
            dropped += claimed.left().files() as u64;
            claimed.remove().map_err(cannot)?;
        }
    }
    args.folder.sweep();
    if output.is_json() {
        output.json(&json!({ "files": dropped }))?;
    } else {
        output.line(&format!("{} dropped", text::count(dropped, "file", "files")))?;
    }
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use super::{address, is_same};

    #[test]
    fn servers_are_known_however_they_are_spoken_to() {
        assert!(is_same("127.0.0.1:5", "http://127.0.0.1:5"));
        assert!(is_same("grpcs://Here:5/", "https://here:5"));
        assert!(!is_same("127.0.0.1:6", "http://127.0.0.1:5"));
        assert!(is_same("grpcs://here", "https://here:443"));
        assert_eq!(address("here:5").as_deref(), Ok("http://here:5"));
        assert_eq!(address("grpcs://here:5/").as_deref(), Ok("https://here:5"));
        assert_eq!(address("grpc://here:5").as_deref(), Ok("http://here:5"));
        assert_eq!(address("https://here").as_deref(), Ok("https://here:443"));
        assert_eq!(address("https://[::1]").as_deref(), Ok("https://[::1]:443"));
        assert_eq!(address("https://[::1]:5").as_deref(), Ok("https://[::1]:5"));
        assert!(address("here").is_err());
    }
}
