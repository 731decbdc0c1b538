//! `preloaded+layer:///BASE?layer=URL&layer_path=DIRECTORY&layer_digest=SHA256`.
//!
//! A URL with parameters, as Diego writes it, so values are decoded as those of a query are. All
//! three parameters must be there; what they say is checked here, and nothing is fetched.

use std::path::PathBuf;

use url::Url;

use super::{ImageSource, invalid, shown};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::oci;

pub(super) fn parse(text: &str) -> Result<ImageSource> {
    let url = Url::parse(text).map_err(|error| invalid(text, format!("it is no URL: {error}")))?;
    let parameter = |name: &'static str| {
        let mut pairs = url.query_pairs();
        let value = pairs.find_map(|(key, value)| (key == name).then(|| value.into_owned()));
        value
            .filter(|value| !value.is_empty())
            .ok_or_else(|| Error::MissingParameter {
                parameter: name,
                url: shown(text),
            })
    };
    let (layer, layer_path) = (parameter("layer")?, parameter("layer_path")?);
    let layer_digest = parameter("layer_digest")?;
    let base = (local(&url).filter(|path| path.parent().is_some())).ok_or_else(|| {
        invalid(
            text,
            "give the path of the base image: preloaded+layer:///PATH",
        )
    })?;
    oci::base_directory(&layer_path).map_err(|rule| {
        invalid(
            text,
            format!("layer_path {layer_path:?} cannot be used: {rule}"),
        )
    })?;
    Ok(ImageSource::Preloaded {
        base,
        layer: layer_url(text, &layer)?,
        layer_path: PathBuf::from(layer_path),
        layer_digest: digest(text, &layer_digest)?,
    })
}

fn layer_url(text: &str, layer: &str) -> Result<Url> {
    let url = Url::parse(layer)
        .map_err(|error| invalid(text, format!("its parameter layer is no URL: {error}")))?;
    if !url.username().is_empty() || url.password().is_some() {
        let reason = "the URL of its layer must not have a user name or a password";
        return Err(invalid(text, reason));
    }
    let known = match url.scheme() {
        "http" | "https" => url.has_host(),
        "file" => local(&url).is_some(),
        _ => false,
    };
    if !known {
        let reason = "its layer must be at http://HOST/…, https://HOST/… or file:///PATH";
        return Err(invalid(text, reason));
    }
    Ok(url)
}

/// The path of a URL without a host, decoded.
fn local(url: &Url) -> Option<PathBuf> {
    if url.has_host() && url.host_str() != Some("") {
        return None;
    }
    let mut file = Url::parse("file:///").ok()?;
    file.set_path(url.path());
    let path = file.to_file_path().ok()?;
    let fits = !path.as_os_str().as_encoded_bytes().contains(&0);
    fits.then_some(path)
}

fn digest(text: &str, given: &str) -> Result<Digest> {
    let digits = given.strip_prefix("sha256:").unwrap_or(given);
    format!("sha256:{}", digits.to_ascii_lowercase())
        .parse()
        .map_err(|_| {
            let reason = "its layer_digest must be the 64 hexadecimal digits of a SHA-256";
            invalid(text, reason)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHA: &str = "2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae";

    #[test]
    fn all_of_it_is_read() {
        let expected = |base: &str, layer: &str, path: &str| ImageSource::Preloaded {
            base: base.into(),
            layer: Url::parse(layer).unwrap(),
            layer_path: path.into(),
            layer_digest: Digest::of(b"foo"),
        };
        for (text, source) in [
            (
                format!(
                    "preloaded+layer:///base%20x.tar?layer=https%3A%2F%2Fh%2Fd%3Fsig%3Ds%26x\
                     &layer_path=/home/vcap&layer_digest={SHA}"
                ),
                expected("/base x.tar", "https://h/d?sig=s&x", "/home/vcap"),
            ),
            (
                format!(
                    "preloaded+layer:///b?layer_digest=sha256:{}&layer=file:///l.tgz&layer_path=app",
                    SHA.to_uppercase()
                ),
                expected("/b", "file:///l.tgz", "app"),
            ),
            (
                format!("preloaded+layer:///b?layer=http://h:1/d&layer_path=/&layer_digest={SHA}"),
                expected("/b", "http://h:1/d", "/"),
            ),
        ] {
            assert_eq!(ImageSource::parse(&text).unwrap(), source, "{text}");
        }
        let signed = expected("/b", "https://h/d?sig=secret", "/app");
        assert_eq!(
            signed.to_string(),
            format!(
                "preloaded+layer:///b?layer=https://h/d?…&layer_path=/app&layer_digest=sha256:{SHA}"
            )
        );
    }

    #[test]
    fn a_missing_parameter_is_named() {
        let whole = [
            ("layer", "http://h/"),
            ("layer_path", "/a"),
            ("layer_digest", SHA),
        ];
        for (missing, _) in whole {
            let rest = whole.iter().filter(|(name, _)| *name != missing);
            let query: Vec<_> = rest
                .map(|(name, value)| format!("{name}={value}"))
                .collect();
            let text = format!("preloaded+layer:///b?{}", query.join("&"));
            let error = ImageSource::parse(&text).unwrap_err().to_string();
            let start = format!("no query parameter '{missing}' found in URL preloaded+layer:///b");
            assert!(error.starts_with(&start), "{error}");
        }
    }

    #[test]
    fn wrong_values_are_refused() {
        let good = format!("layer=http://h/d&layer_path=/a&layer_digest={SHA}");
        for (place, query) in [
            ("host/b", good.clone()),
            ("", good.clone()),
            ("/", good.clone()),
            ("/b", good.replace("http://h/d", "ftp://h/d")),
            ("/b", good.replace("http://h/d", "h/d")),
            ("/b", good.replace("http://h/d", "file://host/d")),
            ("/b", good.replace("http://h/d", "http://u@h/d")),
            ("/b", good.replace("path=/a", "path=/a/../b")),
            ("/b", good.replace("path=/a", "path=..")),
            ("/b", good.replace(SHA, "00")),
            ("/b", good.replace(SHA, &SHA.replace('2', "g"))),
        ] {
            let text = format!("preloaded+layer://{place}?{query}");
            let error = ImageSource::parse(&text).unwrap_err();
            assert!(
                matches!(error, Error::InvalidSource { .. }),
                "{text}: {error}"
            );
        }
    }
}
