//! The frequencies of the rotary embedding: `theta_i = base^(-2i/d)`, and the ways in which models stretch them to reach
//! longer sequences (`rope_scaling`, or `rope_parameters` in newer files).

use serde_json::Value;
use std::f64::consts::PI;

/// Base and scaling of the rotary angles.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rope {
    /// Base of the angles (`rope_theta`).
    pub theta: f64,
    /// How the frequencies are stretched.
    pub scaling: Scaling,
    /// What frequencies and angles are rounded to before their cosine is taken.
    pub angles: Angles,
}

/// What frequencies and angles are rounded to. At position 600 the two differ by up to 3e-5, at 16,000 by 1e-3: a model is
/// to be run on those that it was trained on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Angles {
    /// f32, as transformers and vLLM have them.
    Single,
    /// f64, of a model whose `config.json` says `"rope_angles": "float64"`, a key of ours.
    Double,
}

impl Angles {
    /// The key of `config.json`.
    pub const KEY: &str = "rope_angles";

    fn parse(file: &Value) -> Result<Self, String> {
        match file.get(Self::KEY) {
            None => Ok(Self::Single),
            Some(value) => match value.as_str() {
                Some("float32") => Ok(Self::Single),
                Some("float64") => Ok(Self::Double),
                _ => Err(format!("{} is {value}; it is \"float32\" or \"float64\"", Self::KEY)),
            },
        }
    }
}

/// How the frequencies are stretched.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scaling {
    /// Not at all.
    Default,
    /// Every frequency divided by `factor` (Chen et al. 2023, arXiv 2306.15595).
    Linear {
        /// Above 0.
        factor: f64,
    },
    /// Low frequencies divided by `factor`, high ones kept, those between interpolated (Llama 3.1).
    Llama3 {
        /// Above 0.
        factor: f64,
        /// Wavelengths above `original / low` are stretched.
        low: f64,
        /// Wavelengths below `original / high` are kept.
        high: f64,
        /// Positions the model was pretrained on.
        original: f64,
    },
    /// YaRN (Peng et al. 2023, arXiv 2309.00071): a ramp over the dimensions between kept and divided frequencies.
    Yarn {
        /// Above 0.
        factor: f64,
        /// First dimension that is not wholly kept.
        low: f64,
        /// First dimension that is wholly divided.
        high: f64,
        /// Multiplies cosines and sines.
        attention: f64,
    },
}

impl Rope {
    /// Plain angles of base `theta`, in f32.
    pub fn plain(theta: f64) -> Self {
        Self { theta, scaling: Scaling::Default, angles: Angles::Single }
    }

    /// Reads `rope_theta` and the scaling of a `config.json`, wherever the file's age puts them, for heads of width `dim`
    /// and a model of `positions`.
    ///
    /// # Errors
    /// A scaling that is unknown, depends on the length of the sequence at hand, or lacks a number; as a clause.
    pub fn parse(file: &Value, dim: usize, positions: usize) -> Result<Self, String> {
        let objects = ["rope_scaling", "rope_parameters"].map(|key| (key, file.get(key).unwrap_or(&Value::Null)));
        let theta = |value: &Value| value.get("rope_theta").and_then(Value::as_f64);
        let theta = theta(file).or_else(|| objects.iter().find_map(|(_, v)| theta(v))).unwrap_or(10_000.0);
        if !(theta > 1.0 && theta.is_finite()) {
            return Err(format!("rope_theta is {theta}; it has to be above 1"));
        }
        let mut scaling = Scaling::Default;
        for (key, value) in objects.into_iter().filter(|(_, value)| !value.is_null()) {
            let numbers = Numbers { key, value, positions };
            let found = numbers.scaling(theta, dim)?;
            scaling = if found == Scaling::Default { scaling } else { found };
        }
        Ok(Self { theta, scaling, angles: Angles::parse(file)? })
    }

    /// The angles of every pair at a position, in radians, and what cosines and sines are multiplied with, for heads of width
    /// `dim`.
    pub fn angles(&self, dim: usize) -> (impl Fn(usize, usize) -> f64, f64) {
        let (frequencies, attention) = self.frequencies(dim);
        let rounding = self.angles;
        let angle = move |position: usize, pair: usize| match (rounding, frequencies.get(pair)) {
            (Angles::Single, Some(&frequency)) => f64::from(position as f32 * frequency as f32),
            (Angles::Double, Some(&frequency)) => position as f64 * frequency,
            (_, None) => 0.0,
        };
        (angle, attention)
    }

    /// The angle a position of each of the `dim / 2` pairs, and what cosines and sines are multiplied with.
    fn frequencies(&self, dim: usize) -> (Vec<f64>, f64) {
        let plain = (0..dim / 2).map(|pair| match self.angles {
            // transformers: `1 / base^(arange(0, dim, 2).float() / dim)`.
            Angles::Single => f64::from(1.0 / self.theta.powf(f64::from(2.0 * pair as f32 / dim as f32)) as f32),
            Angles::Double => self.theta.powf(-(2.0 * pair as f64) / dim as f64),
        });
        match self.scaling {
            Scaling::Default => (plain.collect(), 1.0),
            Scaling::Linear { factor } => (plain.map(|f| f / factor).collect(), 1.0),
            Scaling::Llama3 { factor, low, high, original } => {
                let stretched = plain.map(|frequency| {
                    let wavelength = 2.0 * PI / frequency;
                    if wavelength < original / high {
                        frequency
                    } else if wavelength > original / low {
                        frequency / factor
                    } else {
                        let kept = (original / wavelength - low) / (high - low);
                        (1.0 - kept) * frequency / factor + kept * frequency
                    }
                });
                (stretched.collect(), 1.0)
            }
            Scaling::Yarn { factor, low, high, attention } => {
                let mixed = plain.enumerate().map(|(pair, frequency)| {
                    let divided = ((pair as f64 - low) / (high - low)).clamp(0.0, 1.0);
                    frequency / factor * divided + frequency * (1.0 - divided)
                });
                (mixed.collect(), attention)
            }
        }
    }
}

/// The numbers of one scaling object.
struct Numbers<'a> {
    key: &'static str,
    value: &'a Value,
    positions: usize,
}

impl Numbers<'_> {
    fn scaling(&self, theta: f64, dim: usize) -> Result<Scaling, String> {
        let kind = self.value.get("rope_type").or_else(|| self.value.get("type"));
        if let Some(partial) = self.optional("partial_rotary_factor")?.filter(|&share| share != 1.0) {
            return Err(format!("{} has partial_rotary_factor {partial}; only whole heads are rotated", self.key));
        }
        match kind.and_then(Value::as_str).unwrap_or("default") {
            "default" => Ok(Scaling::Default),
            "linear" => Ok(Scaling::Linear { factor: self.above_zero("factor")? }),
            "llama3" => self.llama3(),
            "yarn" => self.yarn(theta, dim),
            other => {
                let known = "default, linear, llama3 and yarn are supported";
                let dynamic = "its frequencies change with the length of the sequence at hand, so that cached keys \
                               and log-probs would disagree";
                let reason = if other == "dynamic" { dynamic } else { "it is not implemented" };
                Err(format!("{} of kind {other}: {reason}; {known}", self.key))
            }
        }
    }

    fn llama3(&self) -> Result<Scaling, String> {
        let (low, high) = (self.above_zero("low_freq_factor")?, self.above_zero("high_freq_factor")?);
        if low >= high {
            return Err(format!("{}: low_freq_factor {low} is not below high_freq_factor {high}", self.key));
        }
        Ok(Scaling::Llama3 { factor: self.above_zero("factor")?, low, high, original: self.original()? })
    }

    fn yarn(&self, theta: f64, dim: usize) -> Result<Scaling, String> {
        let (factor, original) = (self.above_zero("factor")?, self.original()?);
        let growth = |by: f64| if factor <= 1.0 { 1.0 } else { 0.1 * by * factor.ln() + 1.0 };
        let attention =
            match (self.optional("attention_factor")?, self.optional("mscale")?, self.optional("mscale_all_dim")?) {
                (Some(given), _, _) => given,
                (None, Some(one), Some(all)) if one != 0.0 && all != 0.0 => growth(one) / growth(all),
                _ => growth(1.0),
            };
        // The dimension whose angle makes so many rotations within the original positions.
        let dimension = |rotations: f64| dim as f64 * (original / (rotations * 2.0 * PI)).ln() / (2.0 * theta.ln());
        let rotations =
            |name: &str, usual: f64| Ok::<f64, String>(self.optional(name)?.filter(|&b| b != 0.0).unwrap_or(usual));
        let (mut low, mut high) = (dimension(rotations("beta_fast", 32.0)?), dimension(rotations("beta_slow", 1.0)?));
        if self.value.get("truncate").and_then(Value::as_bool).unwrap_or(true) {
            (low, high) = (low.floor(), high.ceil());
        }
        (low, high) = (low.max(0.0), high.min(dim as f64 - 1.0));
        // A ramp needs a width.
        if low == high {
            high += 0.001;
        }
        Ok(Scaling::Yarn { factor, low, high, attention })
    }

    fn original(&self) -> Result<f64, String> {
        Ok(self.optional("original_max_position_embeddings")?.unwrap_or(self.positions as f64))
    }

    fn optional(&self, name: &str) -> Result<Option<f64>, String> {
        match self.value.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match value.as_f64() {
                Some(number) => Ok(Some(number)),
                None => Err(format!("{}.{name} is {value}, not a number", self.key)),
            },
        }
    }

    fn above_zero(&self, name: &str) -> Result<f64, String> {
        match self.optional(name)? {
            Some(number) if number > 0.0 && number.is_finite() => Ok(number),
            Some(number) => Err(format!("{}.{name} is {number}; it has to be above 0", self.key)),
            None => Err(format!("{} has no {name}", self.key)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parse(scaling: Value) -> Result<Rope, String> {
        Rope::parse(&json!({"rope_theta": 10000.0, "rope_scaling": scaling}), 8, 4096)
    }

    #[test]
    fn each_kind_is_its_formula() {
        let plain = [1.0, 0.1, 0.01, 0.001];
        let close = |got: &[f64], want: [f64; 4]| {
            assert!(got.iter().zip(want).all(|(g, w)| (g - w).abs() < 1e-7 * w), "{got:?} {want:?}");
        };
        close(&parse(Value::Null).unwrap().frequencies(8).0, plain);
        close(&parse(json!({"type": "linear", "factor": 4.0})).unwrap().frequencies(8).0, plain.map(|f| f / 4.0));
        // Wavelengths 6.3, 63, 628, 6283: kept below 1024, divided above 4096.
        let llama = json!({"rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4,
            "original_max_position_embeddings": 4096});
        close(&parse(llama).unwrap().frequencies(8).0, [1.0, 0.1, 0.01, 0.001 / 8.0]);
        // 32 rotations within 4096 positions at dimension 1.31, one at 2.81: a ramp from 1 to 3.
        let (frequencies, attention) = parse(json!({"rope_type": "yarn", "factor": 4.0})).unwrap().frequencies(8);
        close(&frequencies, [1.0, 0.1, 0.01 * (0.5 + 0.5 / 4.0), 0.001 / 4.0]);
        assert!((attention - (0.1 * 4f64.ln() + 1.0)).abs() < 1e-12);
    }

    #[test]
    fn angles_are_those_of_transformers_unless_the_file_says_otherwise() {
        let at = |file: Value| Rope::parse(&file, 64, 4096).unwrap().angles(64).0(4001, 5);
        let single = at(json!({"rope_theta": 10000.0}));
        let double = at(json!({"rope_theta": 10000.0, "rope_angles": "float64"}));
        // `torch.tensor(4001.0) * (1 / 10000.0 ** (torch.arange(0, 64, 2).float() / 64))[5]`
        assert_eq!(single, 948.7865600585938);
        assert!((double - 4001.0 * 10000f64.powf(-10.0 / 64.0)).abs() < 1e-9);
        assert_ne!(single, double);
    }

    #[test]
    fn newer_files_nest_the_base() {
        let file = json!({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}});
        assert_eq!(Rope::parse(&file, 8, 4096).unwrap(), Rope::plain(1e6));
    }

    #[test]
    fn what_is_not_supported_is_named() {
        for (scaling, word) in [
            (json!({"rope_type": "dynamic", "factor": 2.0}), "dynamic"),
            (json!({"rope_type": "longrope", "factor": 2.0}), "longrope"),
            (json!({"rope_type": "linear"}), "factor"),
            (json!({"rope_type": "linear", "factor": "2"}), "factor"),
            (json!({"rope_type": "yarn", "factor": -1.0}), "factor"),
            (
                json!({"rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 1}),
                "low_freq_factor",
            ),
            (json!({"partial_rotary_factor": 0.5}), "partial_rotary_factor"),
        ] {
            let message = parse(scaling).unwrap_err();
            assert!(message.contains(word), "{message}");
        }
        let message = Rope::parse(&json!({"rope_angles": "float16"}), 8, 4096).unwrap_err();
        assert!(message.contains("rope_angles"), "{message}");
    }
}
