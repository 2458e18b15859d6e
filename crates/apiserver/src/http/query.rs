//! The part after the question mark.

use crate::{
    registry::{FieldValidation, WriteOptions},
    status::Status,
};

/// Decoded query parameters, in order.
#[derive(Debug, Default)]
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    pub fn parse(text: &str) -> Query {
        Query(form_urlencoded::parse(text.as_bytes()).into_owned().collect())
    }

    /// The first value of a parameter; empty when there is none.
    pub fn text(&self, name: &str) -> &str {
        self.0.iter().find(|(n, _)| n == name).map_or("", |(_, value)| value)
    }

    /// All values of a parameter.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// Whether a boolean parameter is set.
    pub fn flag(&self, name: &str) -> bool {
        matches!(self.text(name), "true" | "1" | "True" | "TRUE" | "t" | "T")
    }

    /// A parameter that is a number, if it is given.
    pub fn number<T: std::str::FromStr>(&self, name: &str) -> Result<Option<T>, Status> {
        match self.text(name) {
            "" => Ok(None),
            text => text
                .parse()
                .map(Some)
                .map_err(|_| Status::bad_request(format!("{name}: {text:?} is not a valid number"))),
        }
    }

    /// `dryRun` and `fieldValidation`; `unsaid` where the latter is not given.
    pub fn write_options(&self, unsaid: FieldValidation) -> Result<WriteOptions, Status> {
        let validation = match self.text("fieldValidation") {
            "" => unsaid,
            "Warn" => FieldValidation::Warn,
            "Ignore" => FieldValidation::Ignore,
            "Strict" => FieldValidation::Strict,
            other => {
                return Err(Status::bad_request(format!("fieldValidation: {other:?} is none of Ignore, Warn, Strict")));
            }
        };
        Ok(WriteOptions { dry_run: self.dry_run()?, validation })
    }

    /// `dryRun=All`.
    pub fn dry_run(&self) -> Result<bool, Status> {
        match self.text("dryRun") {
            "" => Ok(false),
            "All" => Ok(true),
            other => Err(Status::bad_request(format!("dryRun: {other:?} is not \"All\""))),
        }
    }
}

/// What a client means that does not say how unknown fields are to be treated. `kubectl` before 1.25 does not know the
/// parameter: it refuses them itself, by schemas that this server does not have, so the server does it for it.
pub(super) fn unsaid(user_agent: &str) -> FieldValidation {
    let minor = user_agent.strip_prefix("kubectl/v1.").and_then(|rest| rest.split('.').next()?.parse::<u32>().ok());
    match minor {
        Some(..25) => FieldValidation::Strict,
        _ => FieldValidation::Warn,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_kubectl_is_strict() {
        assert_eq!(unsaid("kubectl/v1.20.2 (linux/amd64) kubernetes/faecb19"), FieldValidation::Strict);
        assert_eq!(unsaid("kubectl/v1.32.4 (linux/amd64) kubernetes/59526cd"), FieldValidation::Warn);
        assert_eq!(unsaid("kube-rs"), FieldValidation::Warn);
        assert_eq!(unsaid(""), FieldValidation::Warn);
    }

    #[test]
    fn parameters_are_decoded() {
        let query = Query::parse("labelSelector=a%3Db&command=x&command=y+z&follow=true&tailLines=5&limit=");
        assert_eq!(query.text("labelSelector"), "a=b");
        assert_eq!(query.all("command").collect::<Vec<_>>(), ["x", "y z"]);
        assert!(query.flag("follow") && !query.flag("previous"));
        assert_eq!(query.number::<u64>("tailLines").unwrap(), Some(5));
        assert_eq!(query.number::<u64>("limit").unwrap(), None);
        assert!(Query::parse("tailLines=x").number::<u64>("tailLines").is_err());
        assert!(Query::parse("dryRun=x").dry_run().is_err());
    }
}
