"""What `quality.py` draws: settings of samplers for each process, and budgets of network calls.

A setting is a line of overrides as `dlm generate` takes them. Add, remove and reorder lines freely:
sets on disk are found by their setting, so none is drawn twice and none is taken for another.
"""

BUDGETS = (8, 16, 32, 64, 128, 256)
GIBBS = "sampler=ancestral corrector=gibbs corrector.positions=8 sampler.correct_from=0.5"
REVEAL = [
    "sampler=auto",
    "sampler=ancestral",
    "sampler=ancestral grid=cosine",
    "sampler=tau_leaping",
    "sampler=reveal plan=even",
    "sampler=reveal plan=cosine",
    "sampler=reveal plan=balanced",
    "sampler=reveal plan=minimax",
    "sampler=reveal plan=minimax plan.against=tc",
    "sampler=reveal plan=minimax plan.against=dtc",
    "sampler=reveal plan=equaliser",
    "sampler=first_hitting",
    "sampler=reveal order=confidence",
    "sampler=reveal order=confidence order.temperature=0.5",
    "sampler=reveal order=margin",
    "sampler=reveal order=entropy_bound",
    "sampler=reveal plan=even sampler.temperature=0.8",
    "sampler=psi",
    "sampler=remdm_cap",
    "sampler=remdm_rescale",
    "sampler=remdm_confidence",
    "sampler=remdm_loop",
]
SETTINGS = {
    "Absorbing": [*REVEAL, GIBBS],
    "LiftedUniform": [*REVEAL, "sampler=refreshed", GIBBS],
    "Hybrid": [
        "sampler=auto",
        "sampler=ancestral",
        "sampler=ancestral grid=cosine",
        "sampler=euler",
        "sampler=reveal plan=even",
        "sampler=reveal plan=cosine",
        "sampler=reveal order=confidence",
        "sampler=psi",
        GIBBS,
    ],
    "Uniform": [
        "sampler=auto",
        "sampler=ancestral",
        "sampler=ancestral grid=cosine",
        "sampler=ancestral grid=geometric",
        "sampler=sampled_x0",
        "sampler=maximal_coupling",
        "sampler=euler",
        "sampler=tau_leaping",
        "sampler=psi",
        GIBBS,
        f"{GIBBS} corrector.selection=lowest_margin",
        GIBBS.replace("gibbs", "denoise_renoise"),
        "sampler=ancestral corrector=forward_backward sampler.correct_from=0.5",
        "sampler=ancestral sampler.temperature=0.8",
        "sampler=ancestral sampler.temperature=0.8 sampler.filter_on=denoiser",
    ],
}
