//! From words to server blocks.

use std::time::Duration;

use super::{Block, Corefile, CorefileError, Directive, Position, Word, ZoneKey, lexer, lexer::Token};

/// How deep braces may nest below a server block; CoreDNS needs two.
const MAX_DEPTH: usize = 8;

pub(super) fn corefile(text: &str) -> Result<Corefile, CorefileError> {
    let tokens = lexer::tokens(text)?;
    if let Some(token) =
        tokens.iter().find(|token| token.word.text.starts_with("{$") || token.word.text.starts_with("{%"))
    {
        return Err(token.word.error(format!("environment variable {} is not supported yet", token.word.text)));
    }
    let mut parser = Parser { tokens: &tokens };
    let mut blocks: Vec<Block> = Vec::new();
    while !parser.tokens.is_empty() {
        blocks.push(parser.block()?);
    }
    match blocks.is_empty() {
        true => Err(CorefileError {
            at: Position { line: 1, column: 1 },
            message: "no server block, expected one such as \".:53 { … }\"".to_owned(),
        }),
        false => Ok(Corefile { blocks }),
    }
}

struct Parser<'a> {
    tokens: &'a [Token],
}

impl<'a> Parser<'a> {
    fn next(&mut self) -> Option<&'a Token> {
        let (first, rest) = self.tokens.split_first()?;
        self.tokens = rest;
        Some(first)
    }

    fn block(&mut self) -> Result<Block, CorefileError> {
        let mut keys = Vec::new();
        let mut last: Option<&Word> = None;
        let open = loop {
            match self.next() {
                Some(token) if token.is("{") => break &token.word,
                Some(token) if token.is("}") => return Err(token.word.error("this brace closes nothing")),
                Some(token) if token.word.text == "import" || token.word.text.starts_with('(') => {
                    return Err(token.word.error("snippets and import are not supported yet"));
                }
                Some(token) if token.word.text.ends_with('{') => {
                    return Err(token.word.error("put a blank before the opening brace"));
                }
                Some(token) => {
                    for part in token.word.text.split(',').filter(|part| !part.is_empty()) {
                        keys.extend(ZoneKey::parse(&Word { text: part.to_owned(), at: token.word.at })?);
                    }
                    last = Some(&token.word);
                }
                None => {
                    let word =
                        last.map(|word| word.error("expected \"{\" and directives after the zones of a server block"));
                    return Err(word.unwrap_or_else(|| unexpected_end(Position::default())));
                }
            }
        };
        if keys.is_empty() {
            return Err(open.error("a server block needs a zone before its brace, such as \".:53\""));
        }
        Ok(Block { keys, directives: self.body(open, 0)? })
    }

    /// The lines up to the brace that closes the one at `open`.
    fn body(&mut self, open: &Word, depth: usize) -> Result<Vec<Directive>, CorefileError> {
        if depth > MAX_DEPTH {
            return Err(open.error(format!("more than {MAX_DEPTH} nested blocks")));
        }
        let mut lines = Vec::new();
        loop {
            let Some(token) = self.next() else { return Err(open.error("this brace is never closed")) };
            if token.is("}") {
                return Ok(lines);
            }
            if token.is("{") {
                return Err(token.word.error("expected a directive before this brace"));
            }
            let mut line = Directive { name: token.word.clone(), args: Vec::new(), body: Vec::new() };
            while let Some(token) = self.tokens.first().filter(|next| next.word.at.line == line.name.at.line) {
                if token.is("}") {
                    break;
                }
                self.next();
                if token.is("{") {
                    line.body = self.body(&token.word, depth + 1)?;
                    break;
                }
                line.args.push(token.word.clone());
            }
            lines.push(line);
        }
    }
}

fn unexpected_end(at: Position) -> CorefileError {
    CorefileError { at, message: "unexpected end of the file".to_owned() }
}

/// A duration as Go's `time.ParseDuration` spells it, without signs; a bare number counts seconds.
pub(super) fn duration(text: &str) -> Option<Duration> {
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let in_number = |c: char| c.is_ascii_digit() || c == '.';
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let (number, tail) = rest.split_at(rest.find(|c| !in_number(c))?);
        let (unit, tail) = tail.split_at(tail.find(in_number).unwrap_or(tail.len()));
        let seconds = match unit {
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        let part = Duration::try_from_secs_f64(number.parse::<f64>().ok()? * seconds).ok()?;
        total = total.checked_add(part)?;
        rest = tail;
    }
    (!text.is_empty()).then_some(total)
}
