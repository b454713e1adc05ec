//! The token that a request carries.

use std::fmt;

use zeroize::Zeroizing;

/// A token of the server.
pub(super) struct Token(Zeroizing<String>);

impl Token {
    pub(super) fn new(text: Zeroizing<String>) -> Self {
        Self(text)
    }

    pub(super) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(secret)")
    }
}
