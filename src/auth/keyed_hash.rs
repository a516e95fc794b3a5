//! What stands for a secret where it must not be seen.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use aws_lc_rs::aead::{AES_256_GCM_SIV, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use aws_lc_rs::hmac::{self, HMAC_SHA256, Key};
use aws_lc_rs::rand;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::keys::KeySecret;
use crate::oci::{Digest, Repository};
use crate::routing::{CallerId, Login, UpstreamName};

/// Bytes of the secret.
const LEN: usize = 32;

/// Hashes under a secret of this edge: who reads them learns nothing, and cannot try passwords on them.
#[derive(Debug)]
pub(super) struct KeyedHash(Key);

impl KeyedHash {
    /// The hash of the secret in a file, which is made where there is none. Blocking.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let secret = match read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                make(path)?;
                read(path)?
            }
            secret => secret?,
        };
        Ok(Self(Key::new(HMAC_SHA256, &secret)))
    }

    /// What stands for somebody who offers this login to this upstream.
    pub(super) fn caller(&self, upstream: &UpstreamName, login: &Login) -> CallerId {
        let (kind, name, secret) = match login {
            Login::Password { username, password } => ("password", username.as_str(), password),
            Login::IdentityToken(token) => ("identity token", "", token),
        };
        CallerId(self.of(&["caller", kind, upstream.as_str(), name, secret.expose()]))
    }

    /// What stands for a caller's right of this class in a repository.
    pub(super) fn grant(
        &self,
        caller: CallerId,
        upstream: &UpstreamName,
        repository: &Repository,
        class: &str,
    ) -> String {
        let caller = hex(caller.0);
        hex(self.of(&["grant", &caller, upstream.as_str(), repository.as_str(), class]))
    }

    /// What tells this secret from others.
    pub(super) fn fingerprint(&self) -> String {
        hex(self.of(&["fingerprint"]))
    }

    /// What stands for the secret of a key.
    pub(super) fn key(&self, secret: &KeySecret) -> String {
        hex(self.of(&["key", secret.text().expose()]))
    }

    /// What keeps things of this purpose from being read by whoever does not have the secret.
    pub(super) fn sealer(&self, purpose: &str) -> Sealer {
        // A key of 256 bits for it never fails.
        RandomizedNonceKey::new(&AES_256_GCM_SIV, &self.of(&["seal", purpose])).map(Sealer).expect("32 bytes")
    }

    /// HMAC-SHA-256 (RFC 2104) over the parts, each behind its length, so that no other parts give the same.
    fn of(&self, parts: &[&str]) -> [u8; 32] {
        let mut context = hmac::Context::with_key(&self.0);
        for part in parts {
            context.update(&(part.len() as u64).to_le_bytes());
            context.update(part.as_bytes());
        }
        let mut hash = [0; 32];
        hash.copy_from_slice(context.sign().as_ref());
        hash
    }
}

/// AES-256-GCM-SIV (RFC 8452), which a nonce that comes twice does not break, under a key of its own. Its texts are
/// base64url.
#[derive(Debug)]
pub(super) struct Sealer(RandomizedNonceKey);

impl Sealer {
    /// What only [`unseal`](Self::unseal) with the same `context` reads.
    pub(super) fn seal(&self, plain: &[u8], context: &str) -> Result<String, String> {
        let mut bytes = plain.to_vec();
        let sealed = self.0.seal_in_place_append_tag(Aad::from(context), &mut bytes);
        let nonce = sealed.map_err(|_| "nothing can be sealed".to_owned())?;
        bytes.splice(..0, nonce.as_ref().iter().copied());
        Ok(URL_SAFE_NO_PAD.encode(bytes))
    }

    /// What was sealed; `None` of anything else.
    pub(super) fn unseal(&self, sealed: &str, context: &str) -> Option<Vec<u8>> {
        let mut bytes = URL_SAFE_NO_PAD.decode(sealed).ok()?;
        let (nonce, bytes) = bytes.split_at_mut_checked(NONCE_LEN)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        self.0.open_in_place(nonce, Aad::from(context), bytes).ok().map(|plain| plain.to_vec())
    }
}

fn read(path: &Path) -> io::Result<[u8; LEN]> {
    let mut file = File::open(path)?;
    // Its group may read it, as Kubernetes has it.
    if file.metadata()?.permissions().mode() & 0o037 != 0 {
        return Err(io::Error::other("others may read it; only its owner should (chmod 600)"));
    }
    let mut secret = [0; LEN];
    let is_whole = file.read_exact(&mut secret).is_ok() && file.read(&mut [0])? == 0;
    if is_whole {
        Ok(secret)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidData, format!("it should have {LEN} bytes")))
    }
}

/// Whole or not at all, also where two edges begin at once: the one that comes second takes what the first has made.
fn make(path: &Path) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    let mut secret = [0; LEN];
    rand::fill(&mut secret).map_err(|_| io::Error::other("the machine gives no random bytes"))?;
    let temporary = path.with_extension(std::process::id().to_string());
    let written = (|| {
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(&secret)?;
        file.sync_all()?;
        match fs::hard_link(&temporary, path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            linked => linked,
        }
    })();
    fs::remove_file(&temporary)?;
    written?;
    File::open(directory)?.sync_all()
}

/// Written as a digest of that length is.
fn hex(hash: [u8; 32]) -> String {
    Digest::Sha256(hash).hex()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::Secret;

    fn login(username: &str, password: &str) -> Login {
        Login::password(username, Secret::new(password))
    }

    #[test]
    fn the_secret_is_made_once_and_is_for_its_owner_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state/secret");
        let upstream = "docker.io".parse().unwrap();
        let id = || KeyedHash::open(&path).unwrap().caller(&upstream, &login("alice", "word"));
        let first = id();
        assert!(id() == first);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
        let others: Vec<_> = fs::read_dir(path.parent().unwrap()).unwrap().collect();
        assert_eq!(others.len(), 1, "nothing is left beside it");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(KeyedHash::open(&path).unwrap_err().to_string().contains("chmod"));
        fs::remove_file(&path).unwrap();
        assert!(id() != first, "another secret, other hashes");
        fs::write(&path, "short").unwrap();
        assert_eq!(KeyedHash::open(&path).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn what_is_sealed_is_read_by_the_same_secret_for_the_same_purpose_and_context_alone() {
        let hash = |byte| KeyedHash(Key::new(HMAC_SHA256, &[byte; LEN]));
        let sealer = hash(7).sealer("login");
        let sealed = sealer.seal(b"a secret", "docker.io").unwrap();
        assert_ne!(sealed, sealer.seal(b"a secret", "docker.io").unwrap());
        assert!(!sealed.contains(&URL_SAFE_NO_PAD.encode("secret")));
        assert_eq!(hash(7).sealer("login").unseal(&sealed, "docker.io").unwrap(), b"a secret");
        for (sealer, context) in [
            (hash(8).sealer("login"), "docker.io"),
            (hash(7).sealer("key"), "docker.io"),
            (sealer, "quay.io"),
        ] {
            assert_eq!(sealer.unseal(&sealed, context), None);
        }
        let sealer = hash(7).sealer("login");
        for at in 0..sealed.len() {
            let mut changed = sealed.clone().into_bytes();
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            assert_eq!(sealer.unseal(&String::from_utf8(changed).unwrap(), "docker.io"), None, "{at}");
            assert_eq!(sealer.unseal(&sealed[..at], "docker.io"), None, "{at}");
        }
    }

    #[test]
    fn whatever_differs_has_another_hash() {
        let hash = KeyedHash(Key::new(HMAC_SHA256, &[7; LEN]));
        let upstream = |name: &str| name.parse::<UpstreamName>().unwrap();
        let logins = [
            login("alice", "word"),
            login("alice", "Word"),
            login("alic", "eword"),
            login("", "aliceword"),
            Login::IdentityToken(Secret::new("aliceword")),
        ];
        let mut ids: Vec<_> =
            logins.iter().map(|login| hash.caller(&upstream("docker.io"), login).0).collect();
        ids.push(hash.caller(&upstream("quay.io"), &logins[0]).0);
        let distinct: std::collections::HashSet<_> = ids.iter().collect();
        assert_eq!(distinct.len(), ids.len());
        let alice = hash.caller(&upstream("docker.io"), &logins[0]);
        let grant = |caller, name: &str, repository: &str| {
            hash.grant(caller, &upstream(name), &repository.parse().unwrap(), "content")
        };
        let one = grant(alice, "docker.io", "a/b");
        assert_eq!(one.len(), 64);
        for other in [
            grant(alice, "docker.io", "a/c"),
            grant(alice, "quay.io", "a/b"),
            grant(hash.caller(&upstream("docker.io"), &logins[1]), "docker.io", "a/b"),
        ] {
            assert_ne!(one, other);
        }
    }
}
