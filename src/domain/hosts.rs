//! Which hosts are this machine, and which ways nobody else is on.

use std::net::IpAddr;

/// Whether what is sent to this host, a name or an address, stays on this machine.
pub fn is_loopback(host: &str) -> bool {
    let host = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    host.eq_ignore_ascii_case("localhost")
        || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Whether nobody on the way can put something else in the place of what comes from this URL: it has TLS, or it never
/// leaves this machine.
pub fn is_safe_source(url: &str) -> bool {
    let Ok(uri) = url.parse::<http::Uri>() else { return false };
    let host = uri.host().unwrap_or_default();
    match uri.scheme_str() {
        Some("https") => !host.is_empty(),
        Some("http") => is_loopback(host),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_over_a_way_that_others_are_on_has_to_be_encrypted() {
        for (url, safe) in [
            ("https://login.example", true),
            ("http://127.0.0.1:8080/keys", true),
            ("http://localhost/keys", true),
            ("http://[::1]:8080/keys", true),
            ("http://login.example/keys", false),
            ("http://localhost.example/keys", false),
            ("http://127.0.0.1@login.example/keys", false),
            ("http://127.0.0.1:80@login.example/keys", false),
            ("http://127.0.0.1.example", false),
            ("http://login.sock/keys", false),
            ("ftp://login.example", false),
            ("login.example", false),
        ] {
            assert_eq!(is_safe_source(url), safe, "{url}");
        }
    }
}
