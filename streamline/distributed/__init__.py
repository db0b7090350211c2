"""Several processes that run one program: each has its part of the work, all get the whole.

Under ``torchrun`` or ``accelerate launch`` every process makes the same calls in the same order.
Within :func:`joined` they are a team: calibration, losses, scoring and generation share batches,
a training shares each optimiser batch and sums its gradients. Outside it, and of one process,
nothing changes. The first process alone reads and writes files::

    with joined():
        kept = shared(lambda: read(file))           # read by the first, had by all
        made = agreed(lambda: method.prune(...))    # done by all; one's failure is everyone's
        answers = score(paths, requests)            # each has its part of the batches
        if leads():
            write(file, answers)

Every exchange begins with a word on whether all are well, so a process that fails is not waited
for. Values travel over gloo with their tensors beside the pickled structure, never in it; gradients
over NCCL where every process has a GPU of its own.
On one machine what is opened listens on loopback, else where PyTorch chooses; nothing asks for a
password: the network must be trusted.

Parts are put together in the order of one process, and no batch is cut for their number, so the
results are those of one process; sums of gradients, and prompts that are generated together, round
otherwise.
"""
