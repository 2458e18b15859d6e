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

    /// `dryRun` and `fieldValidation`.
    pub fn write_options(&self) -> Result<WriteOptions, Status> {
        let validation = match self.text("fieldValidation") {
            "" | "Warn" => FieldValidation::Warn,
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
