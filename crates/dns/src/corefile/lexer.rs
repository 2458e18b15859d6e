//! From text to words.

use super::{CorefileError, Position, Word};

/// A word and how it stands in the text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Token {
    pub(super) word: Word,
    /// In quotes, or made of a variable: then a brace is a word like any other.
    pub(super) quoted: bool,
    /// It is the first on its line; what a quoted word continues is the line that the word began on.
    pub(super) begins_line: bool,
}

impl Token {
    pub(super) fn is(&self, text: &str) -> bool {
        !self.quoted && self.word.text == text
    }
}

/// Splits the text of a file (0 for the Corefile itself) into words. `#` at the start of a word begins a comment that ends
/// with the line.
pub(super) fn tokens(text: &str, file: u16) -> Result<Vec<Token>, CorefileError> {
    let mut tokens = Vec::new();
    let mut chars = Chars { rest: text.chars().peekable(), at: Position { file, line: 1, column: 1 } };
    let mut begins_line = true;
    while let Some(start) = chars.rest.peek().copied() {
        let at = chars.at;
        if start.is_whitespace() || start == '\u{feff}' {
            begins_line |= start == '\n';
            chars.next();
        } else if start == '#' {
            while chars.rest.peek().is_some_and(|next| *next != '\n') {
                chars.next();
            }
        } else if start == '"' {
            chars.next();
            let text = quoted(&mut chars, at)?;
            tokens.push(Token { word: Word { text, at }, quoted: true, begins_line });
            begins_line = false;
        } else {
            let mut text = String::new();
            while let Some(next) = chars.rest.peek().copied().filter(|next| !next.is_whitespace()) {
                chars.next();
                text.push(next);
            }
            tokens.push(Token { word: Word { text, at }, quoted: false, begins_line });
            begins_line = false;
        }
    }
    Ok(tokens)
}

/// The rest of a quoted word; `\"` stands for a quote, any other backslash for itself.
fn quoted(chars: &mut Chars<'_>, start: Position) -> Result<String, CorefileError> {
    let mut text = String::new();
    loop {
        match chars.next() {
            None => return Err(CorefileError { at: start, message: "this quote is never closed".to_owned() }),
            Some('"') => return Ok(text),
            Some('\\') if chars.rest.peek() == Some(&'"') => {
                chars.next();
                text.push('"');
            }
            Some(other) => text.push(other),
        }
    }
}

struct Chars<'a> {
    rest: std::iter::Peekable<std::str::Chars<'a>>,
    at: Position,
}

impl Chars<'_> {
    fn next(&mut self) -> Option<char> {
        let next = self.rest.next()?;
        if next == '\n' {
            self.at = Position { line: self.at.line + 1, column: 1, ..self.at };
        } else {
            self.at.column += 1;
        }
        Some(next)
    }
}
