//! Hosts that may be told, and the URLs on them; and which addresses are nobody's but the operator's own network, where no
//! client of ours may have us ask.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use axum::http::Uri;

/// An entry of the list: a host, with its port and scheme.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    is_plain: bool,
    name: String,
    port: u16,
}

/// A text is no entry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected a host such as `hooks.example.com`, `hooks.example.com:8443` or `http://10.0.0.5:9000`")]
pub struct HostError;

/// Where a URL leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) host: Host,
    /// The path with its query.
    pub(super) path: String,
}

/// A text is no URL of a webhook.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an https URL of at most {LONGEST} letters, without a user")]
pub(super) struct TargetError;

/// Letters of a URL.
const LONGEST: usize = 2048;

// === impl Host ===

impl Host {
    /// Whether a URL leads to it.
    pub(super) fn is_of(&self, target: &Target) -> bool {
        *self == target.host
    }

    /// Whether HTTP is spoken without TLS.
    pub(super) fn is_plain(&self) -> bool {
        self.is_plain
    }

    /// Its name or address, without the brackets of an address.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Its port.
    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// Whether we may ask at an address that its name resolved to: a public one, or the very one that the entry names.
    pub(super) fn allows(&self, address: IpAddr) -> bool {
        self.name.parse() == Ok(address) || is_public(address)
    }

    /// What the header `host` says.
    pub(super) fn authority(&self) -> String {
        let name = if self.name.contains(':') { format!("[{}]", self.name) } else { self.name.clone() };
        let usual = if self.is_plain { 80 } else { 443 };
        if self.port == usual { name } else { format!("{name}:{}", self.port) }
    }

    fn of_uri(uri: &Uri) -> Option<Self> {
        let is_plain = match uri.scheme_str()? {
            "https" => false,
            "http" => true,
            _ => return None,
        };
        let authority = uri.authority()?;
        if authority.as_str().contains('@') {
            return None;
        }
        let name = authority.host().trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
        // A port that is none is left out by the parser of URLs.
        let port = match authority.as_str().strip_prefix(authority.host())? {
            "" if is_plain => 80,
            "" => 443,
            rest => rest.strip_prefix(':')?.parse().ok()?,
        };
        (!name.is_empty() && port > 0).then_some(Self { is_plain, name, port })
    }
}

impl FromStr for Host {
    type Err = HostError;

    fn from_str(text: &str) -> Result<Self, HostError> {
        let url = if text.contains("://") { text.to_owned() } else { format!("https://{text}") };
        let uri: Uri = url.parse().map_err(|_| HostError)?;
        let is_bare = matches!(uri.path_and_query().map(|path| path.as_str()), None | Some("" | "/"));
        Self::of_uri(&uri).filter(|_| is_bare).ok_or(HostError)
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", if self.is_plain { "http" } else { "https" }, self.authority())
    }
}

// === impl Target ===

impl Target {
    pub(super) fn parse(url: &str) -> Result<Self, TargetError> {
        if url.len() > LONGEST {
            return Err(TargetError);
        }
        let uri: Uri = url.parse().map_err(|_| TargetError)?;
        let host = Host::of_uri(&uri).ok_or(TargetError)?;
        let path = uri.path_and_query().map_or("", |path| path.as_str());
        // The root may be left out, also before a query.
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        // As it is sent.
        let is_sent = path
            .parse::<Uri>()
            .is_ok_and(|sent| sent.path_and_query().is_some_and(|sent| sent.as_str() == path));
        if is_sent { Ok(Self { host, path }) } else { Err(TargetError) }
    }
}

/// Whether an address is one of the world's, and not of this machine, its network or a special purpose.
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    let is_special = match (a, b) {
        // Carriers' own networks, and those of measurements.
        (100, 64..=127) | (198, 18..=19) => true,
        (192, 0) => c == 0,
        (0 | 240..=255, _) => true,
        _ => false,
    };
    !(is_special
        || address.is_private()
        || address.is_loopback()
        || address.is_link_local()
        || address.is_documentation()
        || address.is_multicast())
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let parts = address.segments();
    let last = Ipv4Addr::from((u32::from(parts[6]) << 16) | u32::from(parts[7]));
    match parts {
        // An address of version 4 in other clothes.
        [0, 0, 0, 0, 0, 0xffff | 0, ..] | [0x64, 0xff9b, 0, 0, 0, 0, ..] => {
            is_public_v4(last) && !address.is_loopback()
        }
        [0x2002, high, low, ..] => is_public_v4(Ipv4Addr::from((u32::from(high) << 16) | u32::from(low))),
        // Documentation, and tunnels.
        [0x2001, 0xdb8 | 0, ..] => false,
        // All that is the world's begins with 001.
        [first, ..] => first & 0xe000 == 0x2000,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_hosts() {
        for (text, shown) in [
            ("hooks.example.com", "https://hooks.example.com"),
            ("Hooks.Example.com:8443", "https://hooks.example.com:8443"),
            ("https://hooks.example.com/", "https://hooks.example.com"),
            ("http://10.0.0.5:9000", "http://10.0.0.5:9000"),
            ("http://[::1]", "http://[::1]"),
            ("[2001:4860::8888]:8443", "https://[2001:4860::8888]:8443"),
        ] {
            assert_eq!(text.parse::<Host>().unwrap().to_string(), shown);
        }
        for text in ["", "ftp://a", "a/b", "https://a?b", "me@a", "a:99999", "a:0", "a b"] {
            assert_eq!(text.parse::<Host>(), Err(HostError), "{text}");
        }
    }

    #[test]
    fn a_url_leads_to_a_host_and_a_path() {
        let target = Target::parse("https://a.example/x/y?z=1").unwrap();
        assert_eq!(
            (target.host.to_string().as_str(), target.path.as_str()),
            ("https://a.example", "/x/y?z=1")
        );
        for (url, path) in [
            ("https://a.example", "/"),
            ("https://a.example?job=1", "/?job=1"),
            ("https://a.example/?job=1#part", "/?job=1"),
            ("https://a.example//b", "//b"),
        ] {
            let target = Target::parse(url).unwrap();
            assert_eq!(target.path, path, "{url}");
            assert!(axum::http::Request::post(&target.path).body(()).is_ok(), "{url}");
        }
        assert!(Target::parse(&format!("https://a.example/{}", "x".repeat(LONGEST))).is_err());
    }

    #[test]
    fn no_address_of_our_own_network_is_public() {
        for text in [
            "127.0.0.1",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "0.0.0.0",
            "100.64.0.1",
            "192.0.0.1",
            "198.18.0.1",
            "203.0.113.1",
            "224.0.0.1",
            "255.255.255.255",
            "::1",
            "::",
            "fe80::1",
            "fc00::1",
            "ff02::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::127.0.0.1",
            "64:ff9b::a00:1",
            "2002:7f00:1::",
            "2001:db8::1",
            "2001::1",
            "fec0::1",
        ] {
            assert!(!is_public(text.parse().unwrap()), "{text}");
        }
        for text in ["1.1.1.1", "172.32.0.1", "2606:4700::1111", "::ffff:1.1.1.1", "64:ff9b::101:101"] {
            assert!(is_public(text.parse().unwrap()), "{text}");
        }
        let own: Host = "http://127.0.0.1:9000".parse().unwrap();
        assert!(own.allows("127.0.0.1".parse().unwrap()) && !own.allows("127.0.0.2".parse().unwrap()));
        let named: Host = "http://localhost:9000".parse().unwrap();
        assert!(!named.allows("127.0.0.1".parse().unwrap()));
    }
}
