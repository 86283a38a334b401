//! Following redirects by hand, since what matters is where the token goes: to the origin of the endpoint, which is a scheme,
//! a host and a port, and nowhere else. Another port of the same host may belong to another user of it, and plain http
//! shows the token to everyone on the way.

use ureq::http::Uri;

/// More redirects than any hub needs.
pub(super) const MOST: usize = 10;

/// Whether a status sends the client elsewhere.
pub(super) fn is_redirect(status: u16) -> bool {
    matches!(status, 301 | 302 | 303 | 307 | 308)
}

/// Scheme, host and port of an http address; `None` for everything else.
pub(super) fn origin(url: &str) -> Option<(String, String, u16)> {
    let uri: Uri = url.parse().ok()?;
    let scheme = uri.scheme_str()?.to_ascii_lowercase();
    let usual = match scheme.as_str() {
        "http" => 80,
        "https" => 443,
        _ => return None,
    };
    let host = uri.host()?.to_ascii_lowercase();
    // "host:" has an empty port and "host:99999" none; the latter may not pass for the usual one.
    let authority = uri.authority()?.as_str();
    let written = authority.rsplit_once('@').map_or(authority, |(_, host)| host).strip_prefix(uri.host()?)?;
    let port = match written.strip_prefix(':') {
        None if written.is_empty() => usual,
        None => return None,
        Some("") => usual,
        Some(digits) => digits.parse().ok()?,
    };
    (!host.is_empty()).then_some((scheme, host, port))
}

/// The address that `location` means on a page at `base`; `None` if it is none that can be asked.
pub(super) fn target(base: &str, location: &str) -> Option<String> {
    let location = location.trim();
    let location = location.split('#').next().unwrap_or_default();
    let (scheme, rest) = base.split_once("://")?;
    let (authority, path) = rest.split_once('/').map_or((rest, String::new()), |(a, p)| (a, format!("/{p}")));
    let path = path.split(['?', '#']).next().unwrap_or_default();
    let url = if location.contains("://") && !location.starts_with(['/', '?', '.']) {
        location.to_string()
    } else if let Some(rest) = location.strip_prefix("//") {
        format!("{scheme}://{rest}")
    } else if location.starts_with('/') {
        format!("{scheme}://{authority}{location}")
    } else if location.is_empty() || location.starts_with('?') {
        format!("{scheme}://{authority}{path}{location}")
    } else {
        let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
        format!("{scheme}://{authority}{folder}/{location}")
    };
    origin(&url).map(|_| url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        let same = |a: &str, b: &str| origin(a).is_some() && origin(a) == origin(b);
        assert!(same("https://hub.co", "https://hub.co:443/x?y"));
        assert!(same("http://HUB.co:80/", "http://user:secret@hub.co/z"));
        assert!(same("http://[::1]:8080/a", "http://[::1]:8080"));
        for other in [
            "http://hub.co",
            "https://hub.co:444",
            "https://cdn.hub.co",
            "https://hub.co.evil.com",
            "https://hub.co@evil.com",
            "https://evil.com/hub.co",
            "ftp://hub.co",
            "hub.co",
            "https://",
            "https://hub.co:99999",
        ] {
            assert!(!same("https://hub.co", other), "{other}");
        }
    }

    #[test]
    fn a_location_is_read_as_browsers_do() {
        let base = "https://hub.co:1/a/b?c=d";
        for (location, want) in [
            ("/x?y", Some("https://hub.co:1/x?y")),
            ("x", Some("https://hub.co:1/a/x")),
            ("?z", Some("https://hub.co:1/a/b?z")),
            ("//cdn.co/x", Some("https://cdn.co/x")),
            ("http://cdn.co/x#part", Some("http://cdn.co/x")),
            ("/x?next=http://evil.com", Some("https://hub.co:1/x?next=http://evil.com")),
            ("file:///etc/passwd", None),
            ("gopher://x", None),
        ] {
            assert_eq!(target(base, location).as_deref(), want, "{location}");
        }
    }
}
