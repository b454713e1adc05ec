//! What a PKCS#11 module says about a token, without a judgement of its form.
//!
//! The `cryptoki` crate refuses the whole of it if the token's clock is not written as the standard
//! asks, as openCryptoki does not. Nothing here needs the clock.

use std::ffi::c_ulong;
use std::path::Path;

use cryptoki_sys::{CK_FUNCTION_LIST, CK_RV, CK_TOKEN_INFO, CKR_FUNCTION_FAILED, CKR_OK};

/// A PKCS#11 module, for [`Self::token_info`] alone.
pub(crate) struct TokenInfoReader(cryptoki_sys::Pkcs11);

/// Text and flags of a token. The text is padded with blanks.
#[derive(Clone, Debug)]
pub(crate) struct TokenInfo {
    /// Its label, UTF-8 if the module keeps to the standard.
    pub(crate) label: [u8; 32],
    /// Its manufacturer.
    pub(crate) manufacturer: [u8; 32],
    /// Its model.
    pub(crate) model: [u8; 16],
    /// Its serial number.
    pub(crate) serial: [u8; 16],
    /// `CKF_...`.
    pub(crate) flags: c_ulong,
}

impl TokenInfoReader {
    /// Loads the module, or refers to it again if it is loaded. It runs code of the module, which
    /// the caller has to trust.
    ///
    /// # Errors
    /// The reason of the dynamic linker.
    pub(crate) fn load(path: &Path) -> Result<Self, String> {
        // SAFETY: the constructors of a library that the caller trusts; they are those that loading
        // it for any other use would run.
        let module = unsafe { cryptoki_sys::Pkcs11::new(path) };
        module.map(Self).map_err(|error| error.to_string())
    }

    /// Calls `C_GetTokenInfo`. The module has to be initialised.
    ///
    /// # Errors
    /// The module's code, or `CKR_FUNCTION_FAILED` if it lacks the function.
    pub(crate) fn token_info(&self, slot: u64) -> Result<TokenInfo, CK_RV> {
        let Ok(get_function_list) = self.0.C_GetFunctionList else {
            return Err(CKR_FUNCTION_FAILED);
        };
        let mut functions: *mut CK_FUNCTION_LIST = std::ptr::null_mut();
        // SAFETY: the function of the standard, and a pointer to a live, writable pointer.
        let result = unsafe { get_function_list(&raw mut functions) };
        if result != CKR_OK {
            return Err(result);
        }
        // SAFETY: after success it points to a list that lives as long as the module is loaded, or
        // it is null.
        let function = unsafe { functions.as_ref() }.and_then(|list| list.C_GetTokenInfo);
        let Some(get_token_info) = function else {
            return Err(CKR_FUNCTION_FAILED);
        };
        let mut info = CK_TOKEN_INFO::default();
        // SAFETY: the function of the standard, and a pointer to a live, writable structure.
        let result = unsafe { get_token_info(slot as _, &raw mut info) };
        if result != CKR_OK {
            return Err(result);
        }
        Ok(TokenInfo {
            label: info.label,
            manufacturer: info.manufacturerID,
            model: info.model,
            serial: info.serialNumber,
            flags: info.flags,
        })
    }
}
