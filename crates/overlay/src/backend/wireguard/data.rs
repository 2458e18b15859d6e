//! The annotation `backend-data` of a WireGuard node, as flannel's `wireguardLeaseAttrs`.

use std::{borrow::Cow, fmt};

use podwire_kernel::wireguard::PublicKey;
use serde::Deserialize;

/// What peers need to know beyond the address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LeaseData {
    pub key: PublicKey,
    /// Absent in what flannel wrote before 0.26.6, where all nodes listen on one port.
    pub port: Option<u16>,
}

impl LeaseData {
    pub fn parse(text: &str) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Json<'a> {
            #[serde(rename = "PublicKey", borrow)]
            key: Cow<'a, str>,
            #[serde(rename = "Port", default)]
            port: u16,
        }
        let Json { key, port } = serde_json::from_str(text).map_err(|error| format!("{text}: {error}"))?;
        let key = key.parse().map_err(|error| format!("PublicKey {key:?}: {error}"))?;
        Ok(Self { key, port: Some(port).filter(|port| *port != 0) })
    }
}

impl fmt::Display for LeaseData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, r#"{{"PublicKey":"{}","Port":{}}}"#, self.key, self.port.unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEY: &str = "HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw=";

    #[test]
    fn reads_what_every_flannel_wrote_and_writes_what_it_writes_now() {
        let now = format!(r#"{{"PublicKey":"{KEY}","Port":51820}}"#);
        let data = LeaseData::parse(&now).unwrap();
        assert_eq!((data.key.to_string().as_str(), data.port), (KEY, Some(51820)));
        assert_eq!(data.to_string(), now);
        let before = LeaseData::parse(&format!(r#"{{"PublicKey":"{KEY}"}}"#)).unwrap();
        assert_eq!(before, LeaseData { port: None, ..data });
    }

    #[test]
    fn what_is_no_data_is_refused() {
        for (text, expected) in [
            ("null", "null: "),
            (r#"{"Port":51820}"#, "missing field `PublicKey`"),
            (r#"{"PublicKey":"abc"}"#, r#"PublicKey "abc": not a WireGuard key"#),
            (&format!(r#"{{"PublicKey":"{KEY}","Port":70000}}"#), "70000"),
        ] {
            let message = LeaseData::parse(text).unwrap_err();
            assert!(message.contains(expected), "{message}\n want: {expected}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in r#"[ -~]{0,60}|\{"PublicKey":"[A-Za-z0-9+/]{43}=","Port":[0-9]{1,6}\}"#) {
            if let Ok(data) = LeaseData::parse(&text) {
                prop_assert_eq!(LeaseData::parse(&data.to_string()), Ok(data));
            }
        }
    }
}
