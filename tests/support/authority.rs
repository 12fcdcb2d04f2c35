//! Certificates made at test time, and files of them that a server reads.

use std::path::PathBuf;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType,
    IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber,
    date_time_ymd,
};
use stepwell::config::{Config, TlsMode};
use tempfile::TempDir;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

/// Issues certificates.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// A certificate with its key, both in PEM.
#[derive(Debug, Clone)]
pub struct Issued {
    pub cert: String,
    pub key: String,
    pub der: Vec<u8>,
    pub serial: SerialNumber,
}

impl Authority {
    pub fn new(name: &str) -> Authority {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().expect("a key");
        Authority { issuer: CertifiedIssuer::self_signed(params, key).expect("an authority") }
    }

    pub fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// A certificate with these names, each a URI, an address or a DNS name; its common name is the last one.
    pub fn issue(&self, names: &[&str]) -> Issued {
        self.sign(params(names))
    }

    /// The same, good for so many seconds from now.
    pub fn issue_for(&self, names: &[&str], seconds: i64) -> Issued {
        let until = super::values::wall_clock_ms().div_euclid(1000) + seconds;
        let until = Duration::from_secs(u64::try_from(until).expect("after 1970"));
        let mut params = params(names);
        params.not_after = date_time_ymd(1970, 1, 1) + until;
        self.sign(params)
    }

    /// A certificate that says who somebody is in its common name only.
    pub fn issue_without_names(&self, common_name: &str) -> Issued {
        let mut params = params(&[]);
        params.distinguished_name.push(DnType::CommonName, common_name);
        self.sign(params)
    }

    fn sign(&self, mut params: CertificateParams) -> Issued {
        let serial = SerialNumber::from(rand::random::<u64>() >> 1 | 1 << 62);
        params.serial_number = Some(serial.clone());
        let key = KeyPair::generate().expect("a key");
        let cert = params.signed_by(&key, &self.issuer).expect("a certificate");
        Issued { cert: cert.pem(), key: key.serialize_pem(), der: cert.der().to_vec(), serial }
    }

    /// The list of these certificates as revoked.
    pub fn revoke(&self, revoked: &[&Issued]) -> String {
        let one = |issued: &&Issued| RevokedCertParams {
            serial_number: issued.serial.clone(),
            revocation_time: date_time_ymd(2020, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2020, 1, 1),
            next_update: date_time_ymd(2090, 1, 1),
            crl_number: SerialNumber::from(1u64),
            issuing_distribution_point: None,
            revoked_certs: revoked.iter().map(one).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        list.signed_by(&self.issuer).expect("a list").pem().expect("PEM")
    }
}

fn params(names: &[&str]) -> CertificateParams {
    let name = |name: &&str| match name.parse() {
        Ok(address) => SanType::IpAddress(address),
        Err(_) if name.contains(':') => SanType::URI((*name).try_into().expect("a URI")),
        Err(_) => SanType::DnsName((*name).try_into().expect("a DNS name")),
    };
    let mut params = CertificateParams::default();
    params.subject_alt_names = names.iter().map(name).collect();
    params.not_after = date_time_ymd(2090, 1, 1);
    params.distinguished_name = Default::default();
    if let Some(name) = names.last() {
        params.distinguished_name.push(DnType::CommonName, *name);
    }
    params
}

/// Files of certificates and keys.
pub struct Papers {
    dir: TempDir,
}

impl Papers {
    pub fn new() -> Papers {
        Papers { dir: TempDir::with_prefix("stepwell-papers-").expect("a temp dir") }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        std::fs::write(self.path(name), text).expect("the file can be written");
        self.path(name)
    }

    /// A certificate and its key in place of those that a server has.
    pub fn identify(&self, issued: &Issued) {
        self.write("server.pem", &issued.cert);
        self.write("server.key", &issued.key);
    }

    /// A server that is known by what `identify` has written.
    pub fn tls(&self, config: &mut Config) {
        config.tls.mode = Some(TlsMode::On);
        config.tls.cert_file = Some(self.path("server.pem"));
        config.tls.key_file = Some(self.path("server.key"));
    }
}

/// The names of a server of a test.
pub const HERE: &[&str] = &["127.0.0.1", "localhost"];

/// A new connection over TLS, with a certificate of the client or without; it opens with the first call.
pub fn connect(
    address: impl ToString,
    authorities: &[&Authority],
    shown: Option<&Issued>,
) -> Channel {
    let authorities: Vec<String> = authorities.iter().map(|authority| authority.pem()).collect();
    connect_by(address, &authorities, shown)
}

/// The same, with the authorities in PEM.
pub fn connect_by(
    address: impl ToString,
    authorities: &[String],
    shown: Option<&Issued>,
) -> Channel {
    let authorities = authorities.iter().map(Certificate::from_pem);
    let mut tls = ClientTlsConfig::new().ca_certificates(authorities);
    if let Some(Issued { cert, key, .. }) = shown {
        tls = tls.identity(Identity::from_pem(cert, key));
    }
    Endpoint::from_shared(format!("https://{}", address.to_string()))
        .expect("an address")
        .tls_config(tls)
        .expect("good papers")
        .connect_lazy()
}
