//! Snippets, imports and variables: from the words of the files to the words of one Corefile.

use std::collections::HashMap;

use super::{
    CorefileError, Import, Loader, Word,
    lexer::{self, Token},
};

/// How often one Corefile may import (CoreDNS): a snippet or file that imports itself ends here.
const MAX_IMPORTS: usize = 10_000;
/// How much text imports may add up to, bytes.
const MAX_TEXT: usize = 16 << 20;

/// The words of a Corefile one after the other, with every import replaced by what it names.
pub(super) struct Expander<'a> {
    loader: &'a dyn Loader,
    /// What is still to come, the next one last.
    pending: Vec<Token>,
    snippets: HashMap<String, Vec<Token>>,
    pub(super) imports: Vec<Import>,
    count: usize,
    /// Bytes that imports may still add.
    room: usize,
}

impl<'a> Expander<'a> {
    pub(super) fn new(loader: &'a dyn Loader) -> Self {
        let (pending, imports) = (Vec::new(), Vec::new());
        Self { loader, pending, snippets: HashMap::new(), imports, count: 0, room: MAX_TEXT }
    }

    /// Begins with the Corefile itself.
    pub(super) fn start(&mut self, text: &str) -> Result<(), CorefileError> {
        self.pending = lexer::tokens(text, 0)?;
        self.pending.reverse();
        Ok(())
    }

    /// The next word, without taking it.
    pub(super) fn peek(&mut self) -> Result<Option<&Token>, CorefileError> {
        while self.pending.last().is_some_and(|token| token.begins_line && token.is("import")) {
            self.import()?;
        }
        Ok(self.pending.last())
    }

    /// Takes the next word.
    pub(super) fn next(&mut self) -> Result<Option<Token>, CorefileError> {
        self.peek()?;
        Ok(self.take())
    }

    /// Takes the next word if it belongs to the same line and is no closing brace.
    pub(super) fn next_of_line(&mut self) -> Result<Option<Token>, CorefileError> {
        match self.peek()? {
            Some(token) if !token.begins_line && !token.is("}") => Ok(self.take()),
            _ => Ok(None),
        }
    }

    /// Takes the next word as it is, with the values of its variables.
    fn take(&mut self) -> Option<Token> {
        let mut token = self.pending.pop()?;
        for (start, end) in [("{%", "%}"), ("{$", "}")] {
            if token.word.text.contains(start) {
                let variable = |name: &str| Ok(self.loader.variable(name).unwrap_or_default());
                // The closure never fails.
                if let Ok(text) = replaced(&token.word.text, (start, end), variable) {
                    token.quoted |= text != token.word.text;
                    token.word.text = text;
                }
            }
        }
        Some(token)
    }

    /// If a snippet comes next, takes and keeps it.
    pub(super) fn snippet(&mut self) -> Result<bool, CorefileError> {
        let Some(token) = self.pending.last().filter(|token| !token.quoted) else { return Ok(false) };
        let Some(name) = token.word.text.strip_prefix('(').and_then(|text| text.strip_suffix(')')) else {
            return Ok(false);
        };
        let (name, word) = (name.to_owned(), token.word.clone());
        self.pending.pop();
        if self.snippets.contains_key(&name) {
            return Err(word.error(format!("snippet ({name}) is defined twice")));
        }
        let Some(open) = self.pending.pop().filter(|token| token.is("{")) else {
            return Err(word.error(format!("expected \"{{\" after the name of snippet ({name})")));
        };
        let mut body = Vec::new();
        let mut depth = 1;
        loop {
            let Some(token) = self.pending.pop() else { return Err(open.word.error("this brace is never closed")) };
            depth += usize::from(token.is("{"));
            depth -= usize::from(token.is("}"));
            if depth == 0 {
                break;
            }
            body.push(token);
        }
        self.snippets.insert(name, body);
        Ok(true)
    }

    /// Replaces the line `import NAME|PATTERN [ARGUMENT…]` that comes next.
    fn import(&mut self) -> Result<(), CorefileError> {
        let Some(import) = self.pending.pop() else { return Ok(()) };
        self.count += 1;
        if self.count > MAX_IMPORTS {
            return Err(import.word.error(format!("more than {MAX_IMPORTS} imports: does one import itself?")));
        }
        let mut words = Vec::new();
        while self.pending.last().is_some_and(|token| !token.begins_line && !token.is("}")) {
            words.extend(self.take().map(|token| token.word));
        }
        let Some((name, arguments)) = words.split_first().filter(|(name, _)| !name.text.is_empty()) else {
            return Err(import.word.error("import needs a snippet, a file or a pattern such as conf.d/*.conf"));
        };
        let mut found = match self.snippets.get(&name.text) {
            Some(body) => body.clone(),
            None => self.files(name)?,
        };
        for token in &mut found {
            token.word.text = replaced(&token.word.text, ("{args[", "]}"), |index| argument(index, arguments, token))?;
            self.room = self.room.checked_sub(token.word.text.len() + 1).ok_or_else(|| {
                import.word.error(format!("imports add up to more than {MAX_TEXT} bytes: does one import itself?"))
            })?;
        }
        if let Some(first) = found.first_mut() {
            first.begins_line = true;
        }
        self.pending.extend(found.into_iter().rev());
        Ok(())
    }

    /// The words of the files that `name` spells.
    fn files(&mut self, name: &Word) -> Result<Vec<Token>, CorefileError> {
        let found = self.loader.files(&name.text);
        let files = found.map_err(|error| name.error(format!("cannot import {:?}: {error}", name.text)))?;
        let mut tokens = Vec::new();
        for (path, text) in files {
            self.imports.push(Import { path, by: name.at });
            let file = u16::try_from(self.imports.len());
            let file = file.map_err(|_| name.error(format!("more than {} imported files", u16::MAX)))?;
            tokens.extend(lexer::tokens(&text, file)?);
        }
        Ok(tokens)
    }
}

/// The argument that `{args[INDEX]}` in `token` stands for.
fn argument(index: &str, arguments: &[Word], token: &Token) -> Result<String, CorefileError> {
    let found = index.parse().ok().and_then(|index: usize| arguments.get(index));
    found.map(|word| word.text.clone()).ok_or_else(|| {
        token.word.error(format!("there is no {{args[{index}]}}: the import gives {} argument(s)", arguments.len()))
    })
}

/// The text with each `start NAME end` replaced by what `value` says. What it says is not looked at again.
fn replaced(
    text: &str,
    (start, end): (&str, &str),
    value: impl Fn(&str) -> Result<String, CorefileError>,
) -> Result<String, CorefileError> {
    let mut result = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once(start) {
        let Some((name, after)) = after.split_once(end).filter(|(name, _)| !name.is_empty()) else { break };
        result.push_str(before);
        result.push_str(&value(name)?);
        rest = after;
    }
    Ok(result + rest)
}
