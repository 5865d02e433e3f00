"""The published data sets that `vitalring data import` reads: where they are, how to cite them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Origin:
    """A published data set. `licence` is as its publisher states it."""

    name: str
    page: str
    doi: str
    licence: str
    cite: tuple[str, ...]

    @property
    def where(self) -> str:
        """Where a user finds the files."""
        return f"{self.name} is published at {self.page} (DOI {self.doi})"


_UCI = (
    "the archive's page states Creative Commons Attribution 4.0 International (CC BY 4.0); the "
    "authors' README asks for the citation below and prohibits any commercial use: keep to the "
    "stricter of the two"
)

MITBIH = Origin(
    "MIT-BIH Arrhythmia Database 1.0.0",
    "https://physionet.org/content/mitdb/1.0.0/",
    "10.13026/C2F305",
    "Open Data Commons Attribution License v1.0, https://opendatacommons.org/licenses/by/1-0/",
    (
        "G. B. Moody, R. G. Mark. The impact of the MIT-BIH Arrhythmia Database. IEEE Engineering "
        "in Medicine and Biology Magazine 20(3):45-50, 2001.",
        "A. L. Goldberger et al. PhysioBank, PhysioToolkit, and PhysioNet. Circulation "
        "101(23):e215-e220, 2000.",
    ),
)
UCI_HAR = Origin(
    "Human Activity Recognition Using Smartphones (UCI HAR) 1.0",
    "https://archive.ics.uci.edu/dataset/240",
    "10.24432/C54S4K",
    _UCI,
    (
        "D. Anguita, A. Ghio, L. Oneto, X. Parra, J. L. Reyes-Ortiz. A Public Domain Dataset for "
        "Human Activity Recognition Using Smartphones. ESANN 2013.",
    ),
)
HAPT = Origin(
    "Smartphone-Based Recognition of Human Activities and Postural Transitions (HAPT) 2.1",
    "https://archive.ics.uci.edu/dataset/341",
    "10.24432/C54G7M",
    "the archive's page states Creative Commons Attribution 4.0 International (CC BY 4.0); the "
    "README states no terms, and the same authors' UCI HAR prohibits any commercial use: keep to "
    "the stricter",
    (
        "J. L. Reyes-Ortiz, L. Oneto, A. Samà, X. Parra, D. Anguita. Transition-Aware Human "
        "Activity Recognition Using Smartphones. Neurocomputing 171:754-767, 2016.",
    ),
)
DIABETES = Origin(
    "Diabetes 130-US Hospitals for Years 1999-2008",
    "https://archive.ics.uci.edu/dataset/296",
    "10.24432/C5230J",
    "Creative Commons Attribution 4.0 International (CC BY 4.0), as the archive's page states",
    (
        "B. Strack, J. P. DeShazo, C. Gennings, J. L. Olmo, S. Ventura, K. J. Cios, J. N. Clore. "
        "Impact of HbA1c Measurement on Hospital Readmission Rates: Analysis of 70,000 Clinical "
        "Database Patient Records. BioMed Research International 2014:781670.",
    ),
)
