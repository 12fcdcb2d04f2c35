//! The sender against a server that misbehaves on purpose.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use futures::Stream;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Streaming};

use super::*;
use crate::proto::ingest_request::Write;
use crate::proto::ingest_service_server::{IngestService, IngestServiceServer};

/// What the server does with a record, by its app's name.
#[derive(Default)]
struct Memory {
    /// Id -> revision.
    stored: BTreeMap<String, i64>,
    /// How often each id was seen.
    seen: BTreeMap<String, usize>,
}

#[derive(Clone, Default)]
struct Misbehaving {
    memory: Arc<Mutex<Memory>>,
}

/// The revision of a record that is stored now; the import of these tests began at 1000.
const NOW: i64 = 2000;

fn error(code: Code, message: &str) -> Answer {
    Answer::Error(tonic_types::Status {
        code: code as i32,
        message: message.to_owned(),
        details: Vec::new(),
    })
}

impl Misbehaving {
    fn answer(&self, record: &proto::Execution) -> Result<Answer, Status> {
        let mut memory = self.memory.lock().expect("not poisoned");
        let seen = memory.seen.entry(record.execution_id.clone()).or_default();
        *seen += 1;
        let first = *seen == 1;
        match record.app_name.as_str() {
            "refused" => return Ok(error(Code::InvalidArgument, "app_name is refused")),
            "busy" if first => return Ok(error(Code::Unavailable, "not now")),
            "breaks" if first => return Err(Status::unavailable("going away")),
            "poison" => return Err(Status::internal("cannot be decoded")),
            "unwelcome" => return Err(Status::permission_denied("not you")),
            "down" => return Err(Status::unavailable("down for good")),
            _ => {}
        }
        let revision = if record.app_name == "old" { 500 } else { NOW };
        memory.stored.insert(record.execution_id.clone(), revision);
        // Stored, and the answer is lost.
        if record.app_name == "lost" && first {
            return Err(Status::unavailable("going away"));
        }
        Ok(Answer::Execution(proto::IngestedExecution {
            execution_id: record.execution_id.clone(),
            revision,
            status: record.status,
            superseded: false,
        }))
    }
}

#[tonic::async_trait]
impl IngestService for Misbehaving {
    type IngestStream = Pin<Box<dyn Stream<Item = Result<proto::IngestResponse, Status>> + Send>>;

    async fn ingest(
        &self,
        request: Request<Streaming<proto::IngestRequest>>,
    ) -> Result<Response<Self::IngestStream>, Status> {
        let server = self.clone();
        let begun = (request.into_inner(), false);
        let answers = futures::stream::try_unfold(begun, move |(mut requests, failed)| {
            let server = server.clone();
            async move {
                let Some(request) = requests.message().await? else { return Ok(None) };
                let Some(Write::PutExecution(record)) = request.write else {
                    return Err(Status::internal("only executions here"));
                };
                // As if all records were of one execution: what follows one that failed for now is held up.
                let result = match failed {
                    true => error(Code::Aborted, "an earlier write failed"),
                    false => server.answer(&record)?,
                };
                let failed = matches!(&result, Answer::Error(error) if is_passing(Code::from_i32(error.code)));
                let answer =
                    proto::IngestResponse { sequence: request.sequence, result: Some(result) };
                Ok(Some((answer, (requests, failed))))
            }
        });
        Ok(Response::new(Box::pin(answers)))
    }
}

#[derive(Default)]
struct Heard {
    outcomes: Vec<(u64, Outcome)>,
    troubles: usize,
}

impl Listener for Heard {
    fn read(&mut self, _: &Read) {}

    fn outcome(&mut self, record: &Outgoing, outcome: Outcome) {
        self.outcomes.push((record.line, outcome));
    }

    fn trouble(&mut self, _: &str) {
        self.troubles += 1;
    }
}

/// Sends records, given as id and app's name, and says what became of each line.
async fn import(records: &[(&str, &str)]) -> (Heard, Misbehaving, Result<(), Stopped>) {
    let server = Misbehaving::default();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = format!("http://{}", listener.local_addr().expect("bound"));
    let service = IngestServiceServer::new(server.clone());
    tokio::spawn(
        tonic::transport::Server::builder()
            .add_service(service)
            .serve_with_incoming(TcpListenerStream::new(listener)),
    );
    let connection = connection::ServerArgs { server: address, ..Default::default() }
        .connect()
        .expect("a valid address");
    let mut sender = Sender::new(connection, 1000);
    sender.first_pause = Duration::from_millis(1);
    let (batches, receiver) = mpsc::channel(records.len().max(1));
    for (index, (id, app_name)) in records.iter().enumerate() {
        let record = proto::Execution {
            execution_id: (*id).to_owned(),
            app_name: (*app_name).to_owned(),
            ..Default::default()
        };
        let outgoing = Outgoing {
            file: 0,
            line: index as u64 + 1,
            documents: 1,
            write: Write::PutExecution(record),
            bytes: 100,
            assumed: false,
            left_out: Vec::new(),
        };
        batches.try_send(vec![Read::Write(Box::new(outgoing))]).expect("room");
    }
    drop(batches);
    let mut heard = Heard::default();
    let ended = sender.send(receiver, &mut heard).await;
    heard.outcomes.sort_by_key(|(line, _)| *line);
    (heard, server, ended)
}

fn refused(reason: &str) -> Outcome {
    Outcome::Refused(reason.to_owned())
}

#[tokio::test]
async fn refusals_are_told_and_the_rest_goes_on() {
    let (heard, _, ended) =
        import(&[("a", "fine"), ("b", "refused"), ("c", "old"), ("a", "fine")]).await;
    ended.expect("all answered");
    assert_eq!(
        heard.outcomes,
        [
            (1, Outcome::Stored),
            (2, refused("app_name is refused (INVALID_ARGUMENT)")),
            (3, Outcome::AlreadyThere),
            // The same record twice in one import.
            (4, Outcome::AlreadyThere),
        ]
    );
    assert_eq!(heard.troubles, 0);
}

#[tokio::test]
async fn what_was_not_answered_is_sent_again() {
    let records = [("a", "fine"), ("b", "breaks"), ("c", "busy"), ("d", "lost"), ("e", "fine")];
    let (heard, server, ended) = import(&records).await;
    ended.expect("all answered");
    let stored: Vec<_> = (1..=5).map(|line| (line, Outcome::Stored)).collect();
    assert_eq!(heard.outcomes, stored);
    assert!(heard.troubles >= 3, "{}", heard.troubles);
    assert_eq!(server.memory.lock().expect("not poisoned").stored.len(), 5);
}

#[tokio::test]
async fn what_failed_for_now_goes_over_a_new_stream_with_what_it_holds_up() {
    let records = [("a", "busy"), ("b", "busy"), ("c", "refused"), ("d", "fine")];
    let (heard, server, ended) = import(&records).await;
    ended.expect("all answered");
    let refused = refused("app_name is refused (INVALID_ARGUMENT)");
    let stored = |line| (line, Outcome::Stored);
    assert_eq!(heard.outcomes, [stored(1), stored(2), (3, refused), stored(4)]);
    assert_eq!(heard.troubles, 2, "one for each stream");
    let seen = &server.memory.lock().expect("not poisoned").seen;
    assert_eq!([seen["a"], seen["b"], seen["c"], seen["d"]], [2, 2, 1, 1]);
}

#[tokio::test]
async fn a_record_that_ends_the_stream_is_found_and_refused_alone() {
    let records = [("a", "fine"), ("b", "poison"), ("c", "fine"), ("d", "poison"), ("e", "fine")];
    let (heard, _, ended) = import(&records).await;
    ended.expect("all answered");
    let poison = || refused("cannot be decoded (INTERNAL)");
    assert_eq!(
        heard.outcomes,
        [
            (1, Outcome::Stored),
            (2, poison()),
            (3, Outcome::Stored),
            (4, poison()),
            (5, Outcome::Stored),
        ]
    );
}

#[tokio::test]
async fn a_server_that_does_not_want_it_stops_the_import_at_once() {
    let (heard, _, ended) = import(&[("a", "unwelcome"), ("b", "fine")]).await;
    let Stopped(reason) = ended.expect_err("stopped");
    assert_eq!(reason, "not you (PERMISSION_DENIED)");
    assert_eq!(heard.outcomes, []);
}

#[tokio::test]
async fn a_server_that_stays_away_is_given_up() {
    let (heard, _, ended) = import(&[("a", "down")]).await;
    let Stopped(reason) = ended.expect_err("stopped");
    assert_eq!(reason, "down for good (UNAVAILABLE)");
    assert_eq!(heard.troubles, TRIES as usize);
}
