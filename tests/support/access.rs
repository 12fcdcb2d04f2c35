//! Callers with keys, and any method by its path.

use std::path::PathBuf;

use bytes::{Buf as _, BufMut as _};
use prost::Message;
use stepwell::auth::key::Key;
use stepwell::config::{AuthMode, Config};
use stepwell::proto::*;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::Channel;
use tonic::{Request, Status, Streaming};

use super::backend::Backend;
use super::client::{Answer, ok};
use super::in_time;
use super::server::Server;

/// A server that asks everybody who they are, and its first admin.
pub struct Guarded {
    pub server: Server,
    pub admin: Caller,
    pub backend: Backend,
}

/// The file of admin keys of a test, with a new key in it.
pub fn admin_key_file(backend: &Backend) -> (PathBuf, Key) {
    let key = Key::generate().expect("the system has randomness");
    let path = backend.data_dir().with_file_name("admin-keys");
    std::fs::write(&path, key.expose()).expect("the file can be written");
    (path, key)
}

pub fn required(config: &mut Config, admin_keys: PathBuf) {
    config.auth.mode = Some(AuthMode::Required);
    config.auth.admin_key_file = Some(admin_keys);
    config.mongodb.trusted_network = true;
}

impl Guarded {
    pub async fn start(backend: &Backend) -> Guarded {
        let (path, key) = admin_key_file(backend);
        let server = backend.serve_with(|config| required(config, path)).await;
        let admin = Caller::new(&server, key.expose());
        Guarded { server, admin, backend: backend.clone() }
    }

    /// Another server on the same database, with the same admin; on SQLite another connection.
    pub async fn second(&self) -> Server {
        if self.backend.kind == super::backend::Kind::Sqlite {
            return self.server.second_connection();
        }
        let path = self.backend.data_dir().with_file_name("admin-keys");
        self.backend.serve_with(|config| required(config, path)).await
    }

    /// A caller with a new key.
    pub async fn caller(&self, role: &str, apps: &[&str]) -> Caller {
        let (_, secret) = self.key(role, apps).await;
        Caller::new(&self.server, &secret)
    }

    /// A new key: its id, and in clear.
    pub async fn key(&self, role: &str, apps: &[&str]) -> (String, String) {
        let request = CreateKeyRequest {
            name: format!("{role} of {}", apps.join(" and ")),
            grants: vec![grant(role, apps)],
            ..Default::default()
        };
        let made: CreateKeyResponse = ok(self.admin.unary("AuthService/CreateKey", request).await);
        (made.key.expect("a key").key_id, made.secret)
    }
}

pub fn grant(role: &str, apps: &[&str]) -> Grant {
    let apps = apps.iter().map(|app| (*app).to_owned()).collect();
    Grant { role: role.to_owned(), apps, reveal: false }
}

/// A connection and a credential.
#[derive(Debug, Clone)]
pub struct Caller {
    pub channel: Channel,
    /// What is sent as `authorization`, each in a header of its own.
    pub authorization: Vec<String>,
}

impl Caller {
    pub fn new(server: &Server, key: &str) -> Caller {
        Caller { channel: server.channel.clone(), authorization: vec![format!("Bearer {key}")] }
    }

    /// Over a connection of one's own.
    pub fn over(channel: Channel, key: Option<&str>) -> Caller {
        Caller {
            channel,
            authorization: key.map(|key| format!("Bearer {key}")).into_iter().collect(),
        }
    }

    pub fn nobody(server: &Server) -> Caller {
        Caller { channel: server.channel.clone(), authorization: Vec::new() }
    }

    /// The same caller at another server.
    pub fn at(&self, server: &Server) -> Caller {
        Caller { channel: server.channel.clone(), authorization: self.authorization.clone() }
    }

    /// Who the server says that this is.
    pub async fn who(&self) -> Answer<WhoAmIResponse> {
        self.unary("AuthService/WhoAmI", WhoAmIRequest {}).await
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        for value in &self.authorization {
            request.metadata_mut().append("authorization", value.parse().expect("a header"));
        }
        request
    }

    /// Calls a method of the API with one message for one.
    pub async fn unary<Q, A>(&self, method: &str, message: Q) -> Answer<A>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let path = format!("/stepwell.v1.{method}");
        let bytes = self.call(&path, vec![message.encode_to_vec()]).await?;
        Ok(A::decode(bytes.first().expect("a message").as_slice()).expect("an answer"))
    }

    /// Opens a call of any kind, with these messages and then the end of the request.
    pub async fn open(&self, path: &str, messages: Vec<Vec<u8>>) -> Answer<Streaming<Vec<u8>>> {
        let mut grpc = tonic::client::Grpc::new(self.channel.clone())
            .max_decoding_message_size(32 * 1024 * 1024);
        if let Err(error) = in_time("a connection", grpc.ready()).await {
            return Err(Status::from_error(error.into()));
        }
        let request = self.request(tokio_stream::iter(messages));
        let path = path.parse().expect("a path");
        in_time("an answer", grpc.streaming(request, path, Bytes))
            .await
            .map(|answer| answer.into_inner())
    }

    /// The messages of a call of any kind, to its end; of a watch those until it is complete.
    pub async fn call(&self, path: &str, messages: Vec<Vec<u8>>) -> Answer<Vec<Vec<u8>>> {
        let mut answers = self.open(path, messages).await?;
        let mut all = Vec::new();
        while let Some(message) = in_time("a message", answers.message()).await? {
            let is_complete = path.contains("/Watch")
                && WatchExecutionResponse::decode(message.as_slice()).is_ok_and(|event| {
                    use watch_execution_response::Event;
                    matches!(event.event, Some(Event::SnapshotComplete(_)))
                });
            all.push(message);
            if is_complete {
                break;
            }
        }
        Ok(all)
    }
}

/// Messages as their bytes.
#[derive(Debug, Clone, Copy, Default)]
pub struct Bytes;

impl Codec for Bytes {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Bytes;
    type Decoder = Bytes;

    fn encoder(&mut self) -> Bytes {
        Bytes
    }

    fn decoder(&mut self) -> Bytes {
        Bytes
    }
}

impl Encoder for Bytes {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Bytes {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        let mut message = vec![0; from.remaining()];
        from.copy_to_slice(&mut message);
        Ok(Some(message))
    }
}
