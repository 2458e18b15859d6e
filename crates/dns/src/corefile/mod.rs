//! The Corefile, as CoreDNS reads it: server blocks of directives.
//!
//! The syntax is the Caddyfile's: words separated by blanks, `"…"` for words with blanks in them, `#` comments, a block
//! in braces after a server block's keys or a directive's arguments, snippets `(name) { … }`, lines `import NAME|FILE`,
//! and `{$VARIABLES}` in any word. Every [`Word`] remembers its place, so that whoever finds fault with it later can say
//! where. Files and variables come from a [`Loader`]; nothing here asks the system.

mod expand;
mod lexer;
mod load;
mod parse;
mod zone;

use std::{fmt, time::Duration};

pub use load::{Loader, Nothing, System};
pub use zone::{ZoneKey, reverse_zones, zone_names};

/// A place in the Corefile or in a file that it imports. Prints as `line:column`; both count from 1, columns in
/// characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Position {
    /// 0 for the Corefile, and from 1 the index in [`Corefile::imports`].
    pub file: u16,
    /// The line.
    pub line: usize,
    /// The character within the line.
    pub column: usize,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

/// What is wrong with a Corefile, and where. Prints as `line:column: what`, and where an imported file is to blame as
/// `line:column of the import: in file:line:column: what`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{at}: {message}")]
pub struct CorefileError {
    /// Where.
    pub at: Position,
    /// What is wrong and what is expected.
    pub message: String,
}

/// One word with its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Word {
    /// The text, without quotes.
    pub text: String,
    /// Where it starts.
    pub at: Position,
}

impl Word {
    /// An error at this word.
    pub fn error(&self, message: impl Into<String>) -> CorefileError {
        CorefileError { at: self.at, message: message.into() }
    }

    /// The word as a number from 0 to `max`.
    ///
    /// # Errors
    /// At the word, when it is not one.
    pub fn number(&self, max: u64) -> Result<u64, CorefileError> {
        let number = self.text.parse().ok().filter(|number| *number <= max);
        number.ok_or_else(|| self.error(format!("{:?} is not a number from 0 to {max}", self.text)))
    }

    /// The word as a duration in Go's spelling (`5s`, `1m30s`, `500ms`); a bare number counts seconds.
    ///
    /// # Errors
    /// At the word, when it is not one or is longer than a day.
    pub fn duration(&self) -> Result<Duration, CorefileError> {
        let wrong = || self.error(format!("{:?} is not a duration such as 5s or 500ms, of at most a day", self.text));
        let day = Duration::from_secs(86_400);
        parse::duration(&self.text).filter(|duration| *duration <= day).ok_or_else(wrong)
    }
}

/// A directive of a server block, or an option of a directive: a name, arguments, and perhaps options in braces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directive {
    /// The first word of the line.
    pub name: Word,
    /// The other words of the line.
    pub args: Vec<Word>,
    /// The lines in braces.
    pub body: Vec<Directive>,
}

impl Directive {
    /// The name as text.
    pub fn name(&self) -> &str {
        &self.name.text
    }

    /// An error at the directive's name.
    pub fn error(&self, message: impl Into<String>) -> CorefileError {
        self.name.error(message)
    }

    /// Refuses an option that the directive `of` does not have.
    pub fn unknown_option(&self, of: &str) -> CorefileError {
        self.error(format!("{of}: unknown option {:?}", self.name()))
    }

    /// Refuses an option of CoreDNS that is not there yet.
    pub fn unsupported_option(&self, of: &str) -> CorefileError {
        self.error(format!("{of}: option {:?} is not supported yet", self.name()))
    }

    /// The arguments, if there are between `min` and `max` of them and no body.
    ///
    /// # Errors
    /// At the name when one is missing, at the first word too many, or at the first line of a body.
    pub fn plain(&self, min: usize, max: usize) -> Result<&[Word], CorefileError> {
        if let Some(line) = self.body.first() {
            return Err(line.error(format!("{} takes no options", self.name())));
        }
        self.arguments(min, max)
    }

    /// The arguments, if there are between `min` and `max` of them.
    ///
    /// # Errors
    /// At the name when one is missing, at the first word too many.
    pub fn arguments(&self, min: usize, max: usize) -> Result<&[Word], CorefileError> {
        if self.args.len() < min {
            return Err(self.error(format!("{} needs {min} argument(s), found {}", self.name(), self.args.len())));
        }
        match self.args.get(max) {
            Some(word) => Err(word.error(format!("{} takes at most {max} argument(s)", self.name()))),
            None => Ok(&self.args),
        }
    }
}

/// A server block: the zones and ports that it serves, and its directives in the order of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// The zones, each with its port.
    pub keys: Vec<ZoneKey>,
    /// The directives.
    pub directives: Vec<Directive>,
}

/// A file that a Corefile imports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Import {
    /// Its path, as the loader has it.
    pub path: String,
    /// The line that imports it.
    pub by: Position,
}

/// A parsed Corefile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Corefile {
    /// The server blocks, at least one.
    pub blocks: Vec<Block>,
    /// The imported files, in the order of their import; one that is imported twice is there twice.
    pub imports: Vec<Import>,
}

impl Corefile {
    /// Parses the text of a Corefile. Says nothing yet about which directives exist.
    ///
    /// # Errors
    /// The first thing that is wrong, with its place.
    pub fn parse(text: &str, loader: &dyn Loader) -> Result<Self, CorefileError> {
        parse::corefile(text, loader)
    }

    /// The error as it is told: at a place of the Corefile itself, and through which files it came.
    pub fn explain(&self, error: CorefileError) -> CorefileError {
        explain(&self.imports, error)
    }
}

/// The error at the line of the Corefile through which the file that is to blame came in.
fn explain(imports: &[Import], error: CorefileError) -> CorefileError {
    let import = |at: Position| usize::from(at.file).checked_sub(1).and_then(|index| imports.get(index));
    let Some(Import { path, by }) = import(error.at) else { return error };
    let mut root = *by;
    // A file is imported by the Corefile or by a file before it in the list, so this ends.
    while let Some(import) = import(root) {
        root = import.by;
    }
    CorefileError { at: root, message: format!("in {path}:{}: {}", error.at, error.message) }
}
