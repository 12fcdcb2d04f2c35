//! TLS of the gRPC port. New handshakes use the certificates that are in force; open connections go on with what they have.

use std::sync::Arc;

use parking_lot::RwLock;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, VerifierBuilderError, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::files::{File, Followed, Unusable};
use crate::auth::certificates::{Certificate, not_after};
use crate::clock::Clock;
use crate::config::{self, ClientAuth, ConfigError};
use crate::domain::Millis;
use crate::telemetry::metrics;

const CERT: &str = "tls.cert_file";
const KEY: &str = "tls.key_file";
const CLIENT_CA: &str = "tls.client_ca_file";
const CLIENT_CRL: &str = "tls.client_crl_file";

/// The TLS that is in force.
pub(super) struct Tls {
    in_force: RwLock<Option<Arc<ServerConfig>>>,
}

/// What is in the files.
struct Contents<'a> {
    certificate: &'a [u8],
    key: &'a [u8],
    client_ca: Option<&'a [u8]>,
    client_crl: Option<&'a [u8]>,
}

/// What is known of the files once they were read.
struct Made {
    config: ServerConfig,
    /// When the first certificate of a file is good no more.
    expiry: Vec<(&'static str, Millis)>,
}

impl Tls {
    /// Reads the files for the first time; `None` where TLS is off.
    pub fn open(
        settings: &config::Tls,
        clock: &Arc<dyn Clock>,
    ) -> Result<Option<(Arc<Tls>, Followed)>, ConfigError> {
        if settings.mode != Some(config::TlsMode::On) {
            return Ok(None);
        }
        let files = [
            (CERT, &settings.cert_file),
            (KEY, &settings.key_file),
            (CLIENT_CA, &settings.client_ca_file),
            (CLIENT_CRL, &settings.client_crl_file),
        ];
        let file = |(setting, path): (_, &Option<_>)| Some(File { setting, path: path.clone()? });
        let files: Vec<File> = files.into_iter().filter_map(file).collect();
        let order: Vec<&'static str> = files.iter().map(|file| file.setting).collect();
        let required = settings.client_auth == Some(ClientAuth::Required);
        let tls = Arc::new(Tls { in_force: RwLock::default() });
        let (to, clock) = (Arc::clone(&tls), Arc::clone(clock));
        let followed = Followed::open(files, move |contents| {
            let of = |setting| {
                let found = order.iter().zip(contents).find(|(own, _)| **own == setting);
                found.map(|(_, bytes)| bytes.as_slice())
            };
            let contents = Contents {
                certificate: of(CERT).unwrap_or_default(),
                key: of(KEY).unwrap_or_default(),
                client_ca: of(CLIENT_CA),
                client_crl: of(CLIENT_CRL),
            };
            let made = contents.make(required)?;
            for (setting, at) in made.expiry {
                metrics::certificate_expiry(setting, at);
                if at < clock.now().millis() {
                    tracing::warn!("{setting} has a certificate that has expired");
                }
            }
            *to.in_force.write() = Some(Arc::new(made.config));
            Ok(())
        })?;
        Ok(Some((tls, followed)))
    }

    /// The handshake of a connection, and the certificate that its client has shown.
    pub async fn accept<T>(&self, io: T) -> std::io::Result<(TlsStream<T>, Option<Certificate>)>
    where
        T: AsyncRead + AsyncWrite + Unpin,
    {
        let config = self.in_force.read().clone();
        let config = config.ok_or(std::io::ErrorKind::NotConnected)?;
        match TlsAcceptor::from(config).accept(io).into_fallible().await {
            Ok(stream) => {
                let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
                let certificate = shown.and_then(Certificate::parse);
                Ok((stream, certificate))
            }
            Err((error, mut io)) => {
                // The client learns why only if it can read it before the connection is gone.
                let _ = io.shutdown().await;
                Err(error)
            }
        }
    }
}

impl Contents<'_> {
    /// What is made of the files; or which of them cannot be used, and why.
    fn make(&self, required: bool) -> Result<Made, Unusable> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let chain = certificates(CERT, self.certificate)?;
        let mut expiry = vec![(CERT, earliest(CERT, &chain)?)];
        let key = PrivateKeyDer::from_pem_slice(self.key).map_err(|_| {
            Unusable::new(KEY, "has no private key in PEM (an encrypted one cannot be used)")
        })?;
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
            .map_err(|error| Unusable::new("tls.mode", error))?;
        let builder = match self.client_ca {
            None => builder.with_no_client_auth(),
            Some(authorities) => {
                let authorities = certificates(CLIENT_CA, authorities)?;
                expiry.push((CLIENT_CA, earliest(CLIENT_CA, &authorities)?));
                let mut roots = RootCertStore::empty();
                for authority in authorities {
                    roots.add(authority).map_err(|error| Unusable::new(CLIENT_CA, error))?;
                }
                let mut verifier =
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                if let Some(lists) = self.client_crl {
                    verifier = verifier.with_crls(revocations(lists)?);
                }
                if !required {
                    verifier = verifier.allow_unauthenticated();
                }
                let verifier = verifier.build().map_err(|error| match error {
                    VerifierBuilderError::InvalidCrl(why) => {
                        let why = format!("has a list that cannot be used: {why:?}");
                        Unusable::new(CLIENT_CRL, why)
                    }
                    other => Unusable::new(CLIENT_CA, other),
                })?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let mut config = builder.with_single_cert(chain, key).map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => {
                Unusable::new(KEY, "is not the key of the certificate in tls.cert_file")
            }
            rustls::Error::InvalidCertificate(why) => Unusable::new(CERT, why),
            other => Unusable::new(KEY, format!("cannot be used with tls.cert_file: {other}")),
        })?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        if self.client_ca.is_some() {
            // Nobody comes back with a certificate that has expired meanwhile.
            config.session_storage = Arc::new(NoServerSessionStorage {});
            config.send_tls13_tickets = 0;
        }
        Ok(Made { config, expiry })
    }
}

fn certificates(
    setting: &'static str,
    pem: &[u8],
) -> Result<Vec<CertificateDer<'static>>, Unusable> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let all = all.ok().filter(|all| !all.is_empty());
    all.ok_or_else(|| Unusable::new(setting, "has no certificate in PEM"))
}

fn revocations(pem: &[u8]) -> Result<Vec<CertificateRevocationListDer<'static>>, Unusable> {
    let all: Result<Vec<_>, _> = CertificateRevocationListDer::pem_slice_iter(pem).collect();
    let all = all.ok().filter(|all| !all.is_empty());
    all.ok_or_else(|| Unusable::new(CLIENT_CRL, "has no revocation list in PEM"))
}

/// When the first of these is good no more.
fn earliest(setting: &'static str, all: &[CertificateDer<'_>]) -> Result<Millis, Unusable> {
    let ends = all.iter().map(|one| not_after(one));
    let ends = ends.collect::<Option<Vec<_>>>().and_then(|ends| ends.into_iter().min());
    ends.ok_or_else(|| Unusable::new(setting, "has a certificate that cannot be read"))
}
