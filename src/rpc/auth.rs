//! AuthService.

use std::sync::Arc;
use std::time::Duration;

use tonic::{Request, Response, Status};

use super::requests::Check;
use super::{authenticate, convert, status};
use crate::app::{App, Error, Result, token};
use crate::auth::keys::{Keys, NewKey};
use crate::auth::{CallerKind, need};
use crate::domain::access::{APPS_PER_GRANT, AppPattern, GRANTS, Grant, Role};
use crate::domain::audit::Target;
use crate::domain::limits::Limits;
use crate::proto;
use crate::store::keys::StoredKey;

/// How long the secret before a rotation stays good unless the request says.
const OVERLAP: Duration = Duration::from_secs(24 * 3600);
const OVERLAP_MOST: Duration = Duration::from_secs(30 * 24 * 3600);
const CALLS_PER_SECOND_MOST: f64 = 1_000_000.0;
const BURST_MOST: i32 = 1_000_000;
/// An id is 12 characters; who sends another has mistyped it.
const KEY_ID_CHARACTERS: usize = 64;

/// Serves AuthService.
pub struct AuthCalls {
    pub app: Arc<App>,
    pub keys: Arc<Keys>,
}

fn grants(grants: &[Grant]) -> Vec<proto::Grant> {
    let grant = |grant: &Grant| proto::Grant {
        role: grant.role.as_str().to_owned(),
        apps: grant.apps.iter().map(ToString::to_string).collect(),
        reveal: grant.reveal,
    };
    grants.iter().map(grant).collect()
}

fn key(key: &StoredKey) -> proto::Key {
    proto::Key {
        key_id: key.id.clone(),
        name: key.name.clone(),
        grants: grants(&key.grants),
        created_at: Some(convert::timestamp(key.created_at)),
        created_by: key.created_by.clone(),
        expires_at: key.expires_at.map(convert::timestamp),
        revoked_at: key.revoked_at.map(convert::timestamp),
        revoked_by: key.revoked_by.clone().unwrap_or_default(),
        last_used_at: key.last_used_at.map(convert::timestamp),
        calls_per_second: key.calls_per_second,
        burst: key.burst,
        previous_until: key.previous.as_ref().map(|previous| convert::timestamp(previous.until)),
    }
}

fn kind(kind: CallerKind) -> proto::CallerKind {
    match kind {
        CallerKind::Anonymous => proto::CallerKind::Anonymous,
        CallerKind::Key => proto::CallerKind::Key,
        CallerKind::AdminKey => proto::CallerKind::AdminKey,
        CallerKind::Oidc => proto::CallerKind::Oidc,
        CallerKind::Certificate => proto::CallerKind::Certificate,
    }
}

fn asked_grants(check: &mut Check<'_>, sent: &[proto::Grant]) -> Vec<Grant> {
    if sent.is_empty() {
        check.bad("grants", "is required");
    }
    if !check.fits("grants", sent.len(), "grants", GRANTS) {
        return Vec::new();
    }
    let mut grants = Vec::with_capacity(sent.len());
    for (index, grant) in sent.iter().enumerate() {
        let role = Role::parse(&grant.role);
        if role.is_none() {
            let known = Role::ALL.map(Role::as_str).join(", ");
            check.bad(&format!("grants[{index}].role"), format!("must be one of: {known}"));
        }
        let field = format!("grants[{index}].apps");
        if grant.apps.is_empty() {
            check.bad(&field, "is required; * is every app");
        }
        let mut apps = Vec::new();
        if check.fits(&field, grant.apps.len(), "apps", APPS_PER_GRANT) {
            for (app, text) in grant.apps.iter().enumerate() {
                match AppPattern::parse(text) {
                    Ok(pattern) => apps.push(pattern),
                    Err(why) => check.bad(&format!("{field}[{app}]"), why),
                }
            }
        }
        grants.extend(role.map(|role| Grant { role, apps, reveal: grant.reveal }));
    }
    grants
}

fn new_key(limits: &Limits, now: i64, request: &proto::CreateKeyRequest) -> Result<NewKey> {
    let mut check = Check::new(limits);
    check.required_name("name", &request.name);
    let grants = asked_grants(&mut check, &request.grants);
    let expires_at = check.time("expires_at", request.expires_at.as_ref());
    if expires_at.is_some_and(|at| at <= now) {
        check.bad("expires_at", "must be in the future");
    }
    if let Some(calls) = request.calls_per_second
        && !(calls > 0.0 && calls <= CALLS_PER_SECOND_MOST)
    {
        let most = CALLS_PER_SECOND_MOST;
        check.bad("calls_per_second", format!("must be more than 0 and at most {most}"));
    }
    if let Some(burst) = request.burst {
        if !(1..=BURST_MOST).contains(&burst) {
            check.bad("burst", format!("must be between 1 and {BURST_MOST}"));
        }
        if request.calls_per_second.is_none() {
            check.bad("burst", "needs calls_per_second");
        }
    }
    check.done(NewKey {
        name: request.name.clone(),
        grants,
        expires_at,
        calls_per_second: request.calls_per_second,
        burst: request.burst,
    })
}

fn key_id(check: &mut Check<'_>, id: &str) {
    if id.is_empty() {
        check.bad("key_id", "is required");
    }
    check.characters("key_id", id, KEY_ID_CHARACTERS);
}

fn overlap(check: &mut Check<'_>, sent: Option<&prost_types::Duration>) -> Duration {
    let Some(sent) = sent else { return OVERLAP };
    // Far from what is allowed the conversion would overflow.
    let near = u64::try_from(sent.seconds).is_ok_and(|seconds| seconds <= OVERLAP_MOST.as_secs());
    match near.then(|| Duration::try_from(*sent)) {
        Some(Ok(overlap)) if overlap <= OVERLAP_MOST => overlap,
        _ => {
            let days = OVERLAP_MOST.as_secs() / 86_400;
            check.bad("overlap", format!("must be between 0 and {days} days"));
            OVERLAP
        }
    }
}

impl AuthCalls {
    async fn list(
        &self,
        request: Request<proto::ListKeysRequest>,
    ) -> Result<proto::ListKeysResponse, Status> {
        let permit = authenticate::permit(&request)?;
        let request = request.into_inner();
        let listed = async {
            let mut check = Check::new(self.app.limits());
            let size = check.page_size(request.page_size);
            check.done(())?;
            let tokens = self.app.tokens().await?;
            let identity: Vec<String> = permit.scope().words().collect();
            let identity = identity.join("\n");
            let after = match request.page_token.as_str() {
                "" => None,
                text => {
                    let opened = tokens.open(token::Kind::KeyPage, identity.as_bytes(), text);
                    let after = opened.and_then(|bytes| String::from_utf8(bytes).ok());
                    Some(after.ok_or(Error::BadToken("page_token"))?)
                }
            };
            let mut keys = self.keys.list(&permit).await?;
            keys.retain(|key| after.as_ref().is_none_or(|after| key.id > *after));
            let more = keys.len() > size;
            keys.truncate(size);
            let next_page_token = keys
                .last()
                .filter(|_| more)
                .map(|key| {
                    tokens.seal(token::Kind::KeyPage, identity.as_bytes(), key.id.as_bytes())
                })
                .unwrap_or_default();
            Ok(proto::ListKeysResponse { keys: keys.iter().map(key).collect(), next_page_token })
        };
        listed.await.map_err(|error: Error| status::of(&error))
    }
}

#[tonic::async_trait]
impl proto::auth_service_server::AuthService for AuthCalls {
    async fn who_am_i(
        &self,
        request: Request<proto::WhoAmIRequest>,
    ) -> Result<Response<proto::WhoAmIResponse>, Status> {
        let caller = authenticate::permit(&request)?.caller;
        let callable = need::methods().filter(|(_, need)| caller.scope(*need).is_some());
        let mut methods: Vec<String> =
            callable.map(|(method, _)| method.replace('/', ".")).collect();
        methods.sort();
        Ok(Response::new(proto::WhoAmIResponse {
            kind: kind(caller.kind).into(),
            id: caller.id.clone(),
            name: caller.name.clone(),
            grants: grants(&caller.grants),
            expires_at: caller.expires_at.map(convert::timestamp),
            methods,
        }))
    }

    async fn create_key(
        &self,
        request: Request<proto::CreateKeyRequest>,
    ) -> Result<Response<proto::CreateKeyResponse>, Status> {
        let permit = authenticate::permit(&request)?;
        let made = async {
            let new = new_key(self.app.limits(), self.keys.now(), request.get_ref())?;
            self.keys.create(&permit, new).await
        };
        let (stored, secret) = made.await.map_err(|error| status::of(&error))?;
        let secret = secret.expose().to_owned();
        let made = Target { key_id: Some(stored.id.clone()), ..Target::default() };
        let answer = proto::CreateKeyResponse { key: Some(key(&stored)), secret };
        let mut answer = Response::new(answer);
        answer.extensions_mut().insert(made);
        Ok(answer)
    }

    async fn list_keys(
        &self,
        request: Request<proto::ListKeysRequest>,
    ) -> Result<Response<proto::ListKeysResponse>, Status> {
        self.list(request).await.map(Response::new)
    }

    async fn rotate_key(
        &self,
        request: Request<proto::RotateKeyRequest>,
    ) -> Result<Response<proto::RotateKeyResponse>, Status> {
        let permit = authenticate::permit(&request)?;
        let request = request.into_inner();
        let rotated = async {
            let mut check = Check::new(self.app.limits());
            key_id(&mut check, &request.key_id);
            let overlap = overlap(&mut check, request.overlap.as_ref());
            check.done(())?;
            self.keys.rotate(&permit, &request.key_id, overlap).await
        };
        let (stored, secret) = rotated.await.map_err(|error| status::of(&error))?;
        let secret = secret.expose().to_owned();
        Ok(Response::new(proto::RotateKeyResponse { key: Some(key(&stored)), secret }))
    }

    async fn revoke_key(
        &self,
        request: Request<proto::RevokeKeyRequest>,
    ) -> Result<Response<proto::RevokeKeyResponse>, Status> {
        let permit = authenticate::permit(&request)?;
        let request = request.into_inner();
        let revoked = async {
            let mut check = Check::new(self.app.limits());
            key_id(&mut check, &request.key_id);
            check.done(())?;
            self.keys.revoke(&permit, &request.key_id).await
        };
        let stored = revoked.await.map_err(|error| status::of(&error))?;
        Ok(Response::new(proto::RevokeKeyResponse { key: Some(key(&stored)) }))
    }
}
