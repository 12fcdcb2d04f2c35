//! Certificates of clients as credentials: whose names are known, and what they may do.

use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use sha2::{Digest as _, Sha256};

use super::caller::{Caller, CallerKind};
use super::expiry::Expiring;
use crate::domain::Millis;
use crate::domain::access::Grant;
use crate::domain::san::{SanName, SanPattern};

/// Longer names are nobody's: what a caller is called is written into records.
const NAME_CHARACTERS: usize = 255;

/// What is to be known of a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// Its subject alternative names of the two kinds that say who somebody is.
    pub names: Vec<SanName>,
    /// When it is good no more.
    pub not_after: Millis,
    /// SHA-256 of it all.
    pub fingerprint: [u8; 32],
}

impl Certificate {
    /// Reads a certificate. It says nothing of whether to believe it.
    pub fn parse(der: &CertificateDer<'_>) -> Option<Certificate> {
        let parsed = webpki::EndEntityCert::try_from(der).ok()?;
        let uris = parsed.valid_uri_names().map(|name| SanName::Uri(name.to_owned()));
        let dns_names = parsed.valid_dns_names().map(|name| SanName::Dns(name.to_owned()));
        let names = uris.chain(dns_names);
        Some(Certificate {
            names: names.filter(|name| name.as_str().chars().count() <= NAME_CHARACTERS).collect(),
            not_after: not_after(der)?,
            fingerprint: Sha256::digest(der).into(),
        })
    }
}

/// Whose certificates are credentials.
pub struct Certificates {
    rules: Vec<(SanPattern, Grant)>,
    expiring: Arc<Expiring>,
}

impl Certificates {
    pub fn new(rules: Vec<(SanPattern, Grant)>, expiring: Arc<Expiring>) -> Certificates {
        Certificates { rules, expiring }
    }

    /// Who has shown this certificate, which somebody has verified; `None`: no rule names it, so it is no credential.
    pub fn caller(&self, certificate: &Certificate) -> Option<Arc<Caller>> {
        let named =
            |pattern: &SanPattern| certificate.names.iter().find(|name| pattern.holds(name));
        let mut met =
            self.rules.iter().filter_map(|(pattern, grant)| Some((named(pattern)?, grant)));
        let (name, first) = met.next()?;
        let grants = std::iter::once(first).chain(met.map(|(_, grant)| grant)).cloned().collect();
        let id = hex::encode(certificate.fingerprint);
        let until = Some(certificate.not_after);
        let caller = Caller::new(CallerKind::Certificate, id, name.as_str(), grants, until);
        let caller = Arc::new(caller);
        self.expiring.add(certificate.not_after, &caller);
        Some(caller)
    }
}

/// The end of the last second in which a certificate is good.
pub fn not_after(der: &[u8]) -> Option<Millis> {
    let (_, certificate, _) = element(der)?;
    let (_, mut fields, _) = element(certificate)?;
    // Version (if given), serial number, algorithm, issuer; then the two times.
    let (tag, _, rest) = element(fields)?;
    if tag == 0xa0 {
        fields = rest;
    }
    for _ in 0..3 {
        (_, _, fields) = element(fields)?;
    }
    let (_, validity, _) = element(fields)?;
    let (_, _, rest) = element(validity)?;
    let (tag, time, _) = element(rest)?;
    let text = std::str::from_utf8(time).ok()?.strip_suffix('Z')?;
    let (year, rest) = match tag {
        // Two digits: 1950 to 2049.
        0x17 => {
            let (year, rest) = text.split_at_checked(2)?;
            let year: i16 = year.parse().ok()?;
            (year + if year < 50 { 2000 } else { 1900 }, rest)
        }
        0x18 => {
            let (year, rest) = text.split_at_checked(4)?;
            (year.parse().ok()?, rest)
        }
        _ => return None,
    };
    let two = |at: usize| rest.get(at..at + 2)?.parse::<i8>().ok();
    let time = jiff::civil::DateTime::new(year, two(0)?, two(2)?, two(4)?, two(6)?, two(8)?, 0);
    let time = jiff::tz::TimeZone::UTC.to_timestamp(time.ok()?).ok()?;
    Some(time.as_millisecond() + 999)
}

/// The first element of DER: its tag, its content and what follows it.
fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&[tag, first], rest) = der.split_first_chunk()?;
    let (length, rest) = match first {
        0..0x80 => (usize::from(first), rest),
        _ => {
            let (bytes, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            if bytes.len() > 4 {
                return None;
            }
            (bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)), rest)
        }
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair, SanType, date_time_ymd};

    use super::*;
    use crate::clock::ManualClock;
    use crate::domain::access::Role;

    fn certificate(names: Vec<SanType>, year: i32) -> Certificate {
        let mut params = CertificateParams::default();
        params.subject_alt_names = names;
        params.distinguished_name.push(DnType::CommonName, "spiffe://org/admin");
        params.not_after = date_time_ymd(year, 12, 31);
        let key = KeyPair::generate().unwrap();
        Certificate::parse(params.self_signed(&key).unwrap().der()).unwrap()
    }

    fn uri(name: &str) -> SanType {
        SanType::URI(name.try_into().unwrap())
    }

    fn dns(name: &str) -> SanType {
        SanType::DnsName(name.try_into().unwrap())
    }

    #[test]
    fn names_and_end_are_read() {
        let address = SanType::IpAddress([10, 0, 0, 1].into());
        let mail = SanType::Rfc822Name("a@b.example".try_into().unwrap());
        let long = uri(&format!("urn:{}", "x".repeat(300)));
        let names = vec![address, dns("app.example"), mail, uri("spiffe://org/app"), long];
        let read = certificate(names, 2040);
        let names =
            [SanName::Uri("spiffe://org/app".to_owned()), SanName::Dns("app.example".to_owned())];
        assert_eq!(read.names, names);
        assert_eq!(read.not_after, 2_240_524_800_999);
        // Years from 2050 on are written with four digits.
        assert_eq!(certificate(vec![dns("a")], 2090).not_after, 3_818_361_600_999);
        let (key, params) = (KeyPair::generate().unwrap(), CertificateParams::default());
        let whole = params.self_signed(&key).unwrap().der().to_vec();
        for length in 0..whole.len() {
            assert!(Certificate::parse(&CertificateDer::from(&whole[..length])).is_none());
        }
    }

    #[test]
    fn who_has_a_name_of_a_rule_may_what_all_rules_of_their_names_say() {
        let clock = Arc::new(ManualClock::at(0));
        let expiring = Arc::new(Expiring::new(clock));
        let rule =
            |san: &str, role| (SanPattern::parse(san).unwrap(), Grant::everywhere(role, false));
        let rules =
            vec![rule("spiffe://org/ops/*", Role::Operator), rule("app.example", Role::Reporter)];
        let certificates = Certificates::new(rules, expiring);
        let both = certificate(vec![dns("APP.example"), uri("spiffe://org/ops/1")], 2040);
        let caller = certificates.caller(&both).unwrap();
        let roles: Vec<Role> = caller.grants.iter().map(|grant| grant.role).collect();
        assert_eq!(roles, [Role::Operator, Role::Reporter]);
        assert_eq!(
            (caller.kind, caller.name.as_str()),
            (CallerKind::Certificate, "spiffe://org/ops/1")
        );
        assert_eq!(caller.id, hex::encode(both.fingerprint));
        assert_eq!(caller.expires_at, Some(both.not_after));
        for nobody in [vec![dns("other.example")], vec![uri("spiffe://org/admin")], vec![]] {
            assert!(certificates.caller(&certificate(nobody, 2040)).is_none());
        }
    }
}
